//! Changes that a destination refuses: the batch climbs the ladder, and only a change that is refused for good becomes
//! a dead letter.

use bson::{Document, doc};
use mongodb::IndexModel;
use mongodb::options::IndexOptions;

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

async fn unique_index(site: &Site, name: &str) {
    let options =
        IndexOptions::builder().unique(true).partial_filter_expression(doc! { "key": { "$exists": true } }).build();
    let index = IndexModel::builder().keys(doc! { "key": 1 }).options(options).build();
    site.at(name).create_index(index).await.unwrap();
}

async fn letters(site: &Site, name: &str) -> Vec<Document> {
    use futures_util::TryStreamExt;
    let letters = site.own_collection(name, "dead_letters").find(doc! {}).await.unwrap();
    letters.try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_unique_index_can_be_swapped_under_live_indexes() {
    let mut site = Site::shared(TRIANGLE).await;
    for name in [HUB, "DFW", "HOU"] {
        unique_index(&site, name).await;
    }
    let documents = (0..10).map(|id| doc! { "_id": id, "_pk": "DFW", "key": id });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    site.stop().await;
    // All changes are in one batch: documents 1, 2 and 3 exchange their values, and new documents take the values of
    // old ones.
    let set = async |id: i32, key: Option<i32>| {
        let update = key.map_or(doc! { "$unset": { "key": 1 } }, |key| doc! { "$set": { "key": key } });
        site.at("DFW").update_one(doc! { "_id": id }, update).await.unwrap();
    };
    set(1, None).await;
    set(2, Some(1)).await;
    set(3, Some(2)).await;
    set(1, Some(3)).await;
    site.at("DFW").delete_one(doc! { "_id": 4 }).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": 40, "_pk": "DFW", "key": 4 }).await.unwrap();
    set(5, Some(50)).await;
    site.at("DFW").insert_one(doc! { "_id": 41, "_pk": "DFW", "key": 5 }).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    for name in [HUB, "HOU"] {
        assert_eq!(letters(&site, name).await, Vec::<Document>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_hubs_unique_index_is_parked_and_the_rest_flows() {
    let mut site = Site::shared(TRIANGLE).await;
    unique_index(&site, HUB).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": "first", "_pk": "HOU", "key": 500 }).await.unwrap();
    site.settle().await;
    let documents = (0..1_000).map(|id| doc! { "_id": id, "_pk": "DFW", "key": id });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.at("DFW").update_one(doc! { "_id": 500 }, doc! { "$set": { "later": 1 } }).await.unwrap();
    site.settle().await;
    assert_eq!(site.at(HUB).count_documents(doc! { "_pk": "DFW" }).await.unwrap(), 999);
    assert_eq!(site.at("HOU").count_documents(doc! { "_pk": "DFW" }).await.unwrap(), 999);
    let parked = letters(&site, HUB).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].get_document("_id").unwrap().get_str("link").unwrap(), "uplink:DFW");
    assert_eq!(parked[0].get_document("_id").unwrap().get_i32("document").unwrap(), 500);
    let reason = parked[0].get_document("reason").unwrap();
    assert!(reason.get_str("message").unwrap().contains("key"), "{reason}");
    assert_eq!(parked[0].get_i64("later_changes").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_spokes_validator_refuses_is_parked_there() {
    let mut site = Site::shared(TRIANGLE).await;
    let collection = site.at("HOU");
    let validator = doc! { "create": collection.name(), "validator": { "speed": { "$lt": 100 } } };
    site.client("HOU").database(&collection.namespace().db).run_command(validator).await.unwrap();
    site.start().await;
    for id in 0..50 {
        let speed = if id % 10 == 7 { 200 } else { 50 };
        site.at("DFW").insert_one(doc! { "_id": id, "_pk": "DFW", "speed": speed }).await.unwrap();
    }
    site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "speed": 300 } }).await.unwrap();
    site.settle().await;
    assert_eq!(site.at(HUB).count_documents(doc! {}).await.unwrap(), 50);
    assert_eq!(site.at("HOU").count_documents(doc! {}).await.unwrap(), 45);
    let parked = letters(&site, "HOU").await;
    assert_eq!(parked.len(), 6, "{parked:?}");
    assert!(parked.iter().all(|letter| letter.get_document("reason").unwrap().get_i32("code").unwrap() == 121));
    assert_eq!(site.spoke_status("HOU")["dead_letters"], 6);
    // After a restart the dead letters are still known, and their documents still wait.
    site.stop().await;
    site.start().await;
    site.at("DFW").update_one(doc! { "_id": 7 }, doc! { "$set": { "speed": 1 } }).await.unwrap();
    site.settle().await;
    assert_eq!(site.at("HOU").count_documents(doc! { "_id": 7 }).await.unwrap(), 0);
    assert_eq!(site.spoke_status("HOU")["dead_letters"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_cannot_have_a_partition_key_is_parked_and_the_rest_flows() {
    const LARGEST: usize = 16 * 1024 * 1024;
    let mut site = Site::shared(TRIANGLE).await;
    let collection = site.at("DFW");
    let database = site.client("DFW").database(&collection.namespace().db);
    let sealed_or_keyed = doc! { "$or": [{ "sealed": { "$exists": false } }, { "_pk": { "$exists": false } }] };
    database.run_command(doc! { "create": collection.name(), "validator": sealed_or_keyed }).await.unwrap();
    let sealed = |id| doc! { "_id": id, "sealed": true };
    let mut documents: Vec<Document> = (0..200).map(|id| doc! { "_id": id }).collect();
    documents.insert(100, sealed("sealed before the start"));
    collection.insert_many(documents).await.unwrap();
    site.start().await;
    site.settle().await;
    let at = async |name: &str| site.at(name).count_documents(doc! { "_pk": "DFW" }).await.unwrap();
    assert_eq!((at(HUB).await, at("HOU").await), (200, 200));
    // The same while the program runs, with further reasons.
    let mut documents: Vec<Document> = (200..1_000).map(|id| doc! { "_id": id }).collect();
    documents.insert(50, sealed("sealed"));
    documents.insert(51, sealed("sealed, too"));
    collection.insert_many(documents).await.unwrap();
    // The largest possible document has no room for the key.
    let mut large = doc! { "_id": "large", "fill": "" };
    large.insert("fill", "x".repeat(LARGEST - bson::serialize_to_vec(&large).unwrap().len()));
    collection.insert_one(large).await.unwrap();
    // A document that had the key loses it.
    let lose = doc! { "$set": { "sealed": true }, "$unset": { "_pk": 1 } };
    collection.update_one(doc! { "_id": 7 }, lose).await.unwrap();
    collection.insert_one(doc! { "_id": "last" }).await.unwrap();
    site.settle().await;
    assert_eq!((at(HUB).await, at("HOU").await), (1_001, 1_001));
    // Every such document is a dead letter, and repair leaves the dead letters alone.
    let parked = letters(&site, HUB).await;
    let code = |letter: &Document| letter.get_document("reason").unwrap().get_i32("code").unwrap();
    let mut refused: Vec<_> = parked
        .iter()
        .map(|letter| (letter.get_document("_id").unwrap().get("document").unwrap().to_string(), code(letter)))
        .collect();
    refused.sort();
    let by_validator = ["\"sealed before the start\"", "\"sealed\"", "\"sealed, too\"", "7"];
    let expected: Vec<_> = by_validator.iter().map(|id| ((*id).to_owned(), 121)).collect();
    assert!(expected.iter().all(|letter| refused.contains(letter)), "{refused:?}");
    assert!(refused.iter().any(|(id, _)| id == "\"large\"") && refused.len() == 5, "{refused:?}");
    assert_eq!(site.spoke_status("DFW")["dead_letters"], 5);
    let (_, list) = site.command(&["dead-letters", "list"]);
    assert!(list.contains("partition key"), "{list}");
    let (code, report) = site.command_code(&["verify", "--repair"]);
    assert!(code == 3 && report.contains("parked"), "{code}: {report}");
    // Without the dead letter, the repair tries the document and reports the refusal.
    assert!(site.command(&["dead-letters", "drop", "DFW", "--id", "sealed"]).0);
    eventually("one dead letter is dropped", async || site.spoke_status("DFW")["dead_letters"] == 4).await;
    let (code, report) = site.command_code(&["verify", "--repair"]);
    assert!(code == 3 && report.contains("unstamped") && report.contains("refused: spoke DFW"), "{code}: {report}");
    // Once the reason is gone, the documents sync like any others.
    database.run_command(doc! { "collMod": collection.name(), "validator": {} }).await.unwrap();
    collection.delete_one(doc! { "_id": "large" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    eventually("every retry has succeeded", async || site.spoke_status("DFW")["dead_letters"] == 0).await;
    site.command_code(&["verify", "--repair"]);
    site.assert_converged().await;
    assert_eq!((at(HUB).await, at("HOU").await), (1_004, 1_004));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_dead_letter_brings_the_present_document_and_a_dropped_one_lets_later_changes_flow() {
    let mut site = Site::shared(TRIANGLE).await;
    unique_index(&site, HUB).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": "taken", "_pk": "HOU", "key": 1 }).await.unwrap();
    site.settle().await;
    for id in ["healed", "gone", "stubborn", "dropped"] {
        site.at("DFW").insert_one(doc! { "_id": id, "_pk": "DFW", "key": 1 }).await.unwrap();
    }
    site.settle().await;
    let (done, list) = site.command(&["dead-letters", "list"]);
    assert!(done && ["uplink:DFW", "healed", "stubborn"].iter().all(|word| list.contains(word)), "{list}");
    // For two of the documents the reason disappears.
    site.at("DFW").update_one(doc! { "_id": "healed" }, doc! { "$set": { "key": 2, "now": true } }).await.unwrap();
    site.at("DFW").delete_one(doc! { "_id": "gone" }).await.unwrap();
    site.settle().await;
    eventually("the letter of the deleted document ends by itself", async || {
        site.spoke_status("DFW")["dead_letters"].as_u64().is_some_and(|letters| letters <= 3)
    })
    .await;
    let (done, text) = site.command(&["dead-letters", "retry", "NYC"]);
    assert!(!done && text.contains("there is no spoke NYC"), "{text}");
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    eventually("two retries have succeeded", async || site.spoke_status("DFW")["dead_letters"] == 2).await;
    let healed = site.at(HUB).find_one(doc! { "_id": "healed" }).await.unwrap().unwrap();
    assert_eq!(healed, doc! { "_id": "healed", "_pk": "DFW", "key": 2, "now": true });
    assert_eq!(letters(&site, HUB).await.len(), 2);
    // A dropped dead letter no longer holds back later changes of its document.
    let typo = serde_json::json!({ "id": ["dropped"] });
    let path = "/api/v1/spokes/DFW/dead-letters/drop";
    assert_eq!(site.program.as_ref().unwrap().post_json(path, &typo).unwrap().0, 400);
    assert!(site.command(&["dead-letters", "drop", "DFW", "--id", "dropped"]).0);
    eventually("one dead letter is dropped", async || site.spoke_status("DFW")["dead_letters"] == 1).await;
    site.at("DFW").update_one(doc! { "_id": "dropped" }, doc! { "$set": { "key": 3 } }).await.unwrap();
    site.settle().await;
    assert_eq!(site.at(HUB).count_documents(doc! { "_id": "dropped", "key": 3 }).await.unwrap(), 1);
    assert_eq!(site.at("HOU").count_documents(doc! { "_id": "healed", "now": true }).await.unwrap(), 1);
    assert_eq!(letters(&site, HUB).await.len(), 1);
    site.stop().await;
    let (done, text) = site.command(&["dead-letters", "list"]);
    assert!(!done && text.contains("nothing answers at"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_does_not_fit_the_destinations_document_brings_it_whole() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "list": [1, 2, 3], "n": 1 }).await.unwrap();
    site.settle().await;
    // An application at HOU replaces the array of HOU's copy, so that the delta has no array to truncate.
    site.at("HOU").update_one(doc! { "_id": 1 }, doc! { "$set": { "list": "tampered" } }).await.unwrap();
    site.settle().await;
    site.at("DFW")
        .update_one(doc! { "_id": 1 }, doc! { "$push": { "list": { "$each": [], "$slice": 1 } } })
        .await
        .unwrap();
    site.assert_converged().await;
    assert!(letters(&site, "HOU").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_older_change_is_applied_to_a_document_that_was_read_whole() {
    let mut site = Site::shared(TRIANGLE).await;
    unique_index(&site, HUB).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": "taken", "_pk": "HOU", "key": 1 }).await.unwrap();
    site.settle().await;
    // The hub lacks a document, because its dead letter was dropped.
    let own = site.at("DFW");
    own.insert_one(doc! { "_id": "lacking", "_pk": "DFW", "key": 1 }).await.unwrap();
    own.update_one(doc! { "_id": "lacking" }, doc! { "$unset": { "key": 1 } }).await.unwrap();
    site.settle().await;
    assert!(site.command(&["dead-letters", "drop", "DFW", "--id", "lacking"]).0);
    eventually("the dead letter is dropped", async || site.spoke_status("DFW")["dead_letters"] == 0).await;
    site.stop().await;
    let set = async |n: i32| {
        own.update_one(doc! { "_id": "lacking" }, doc! { "$set": { "n": n } }).await.unwrap();
    };
    // A refused insert between the updates splits the batch; the last update is in a later batch.
    set(1).await;
    own.insert_one(doc! { "_id": "refused", "_pk": "DFW", "key": 1 }).await.unwrap();
    set(2).await;
    own.insert_many((0..12_000).map(|id| doc! { "_id": id, "_pk": "DFW" })).await.unwrap();
    set(3).await;
    // The read at the batch's time fails with 239 (SnapshotTooOld), and the program reads the present document instead.
    let fail = doc! {
        "configureFailPoint": "failCommand", "mode": { "times": 1 },
        "data": { "failCommands": ["find"], "errorCode": 239, "namespace": own.namespace().to_string() },
    };
    site.client("DFW").database("admin").run_command(fail).await.unwrap();
    site.start().await;
    site.settle().await;
    let hub = site.at(HUB).find_one(doc! { "_id": "lacking" }).await.unwrap();
    assert_eq!(hub, Some(doc! { "_id": "lacking", "_pk": "DFW", "n": 3 }));
    assert_eq!(site.at(HUB).count_documents(doc! { "_pk": "DFW" }).await.unwrap(), 12_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spokes_own_document_is_not_overwritten_by_another_zones_of_the_same_id() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": 1, "_pk": "HOU" }).await.unwrap();
    site.settle().await;
    // DFW's document with the same `_id` cannot go up, and HOU's document must not overwrite it.
    site.at("DFW").delete_one(doc! { "_id": 1 }).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "precious": true }).await.unwrap();
    eventually("the collision is found", async || !letters(&site, HUB).await.is_empty()).await;
    site.at("HOU").replace_one(doc! { "_id": 1 }, doc! { "_pk": "HOU", "n": 1 }).await.unwrap();
    site.settle().await;
    eventually("the spoke tells the collision, too", async || letters(&site, "DFW").await.len() == 1).await;
    let kept = site.at("DFW").find_one(doc! { "_id": 1 }).await.unwrap().unwrap();
    assert_eq!(kept, doc! { "_id": 1, "_pk": "DFW", "precious": true });
}
