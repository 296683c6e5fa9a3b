//! Destinations that roll transactions back, servers that need long, and servers whose majority stands still: the links
//! go on, or say what they wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use testbed::node::Options;
use testbed::set::Set;

use super::support::site::{HUB, Topology};
use super::support::{Site, eventually};

const PAIR: Topology<'static> = &[("DFW", &[]), ("HOU", &["DFW"])];

fn restarts(site: &Site, zone: &str) -> u64 {
    let status = site.spoke_status(zone);
    ["uplink", "downlink"].iter().map(|link| status[link]["restarts"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_destination_changes_all_the_time_does_not_hold_up_a_batch() {
    let mut site = Site::own(PAIR, Options::default()).await;
    let documents = (0..3_000).map(|id| doc! { "_id": id, "_pk": "DFW", "n": 0, "text": "x".repeat(200) });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": "hot", "_pk": "DFW", "n": 0, "heat": 0 }).await.unwrap();
    site.start().await;
    site.settle().await;
    let ended = Arc::new(AtomicBool::new(false));
    let heating = (0..3).map(|_| {
        let (hub, ended) = (site.at(HUB), ended.clone());
        tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                hub.update_one(doc! { "_id": "hot" }, doc! { "$inc": { "heat": 1 } }).await.unwrap();
            }
        })
    });
    let heating: Vec<_> = heating.collect();
    site.in_one_batch(async || {
        site.at("DFW").update_many(doc! {}, doc! { "$set": { "n": 1 } }).await.unwrap();
    })
    .await;
    eventually("everything is at the hub", async || {
        site.at(HUB).count_documents(doc! { "n": 1 }).await.unwrap() == 3_001
    })
    .await;
    ended.store(true, Ordering::Relaxed);
    for task in heating {
        task.await.unwrap();
    }
    assert_eq!(restarts(&site, "DFW"), 0, "{}", site.log());
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_fit_the_destination_is_sent_in_halves() {
    const TOO_LARGE_FOR_CACHE: i32 = 388;
    const EXCEEDED_LIFETIME: i32 = 290;
    for code in [TOO_LARGE_FOR_CACHE, EXCEEDED_LIFETIME] {
        let mut site = Site::own(PAIR, Options::default()).await;
        site.start().await;
        site.settle().await;
        site.in_one_batch(async || {
            let documents = (0..100).map(|id| doc! { "_id": id, "_pk": "DFW" });
            site.at("DFW").insert_many(documents).await.unwrap();
            site.nodes[HUB].fail(3, doc! { "failCommands": ["insert"], "errorCode": code }).await.unwrap();
        })
        .await;
        eventually("everything is at the hub", async || site.at(HUB).count_documents(doc! {}).await.unwrap() == 100)
            .await;
        assert_eq!(site.log().matches("going on with smaller ones").count(), 3, "{}", site.log());
        assert_eq!(restarts(&site, "DFW"), 0);
        site.assert_converged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_snapshot_is_too_old_is_read_again() {
    const SNAPSHOT_TOO_OLD: i32 = 239;
    let mut site = Site::own(PAIR, Options::default()).await;
    site.at(HUB).insert_many((0..100).map(|id| doc! { "_id": id, "_pk": "DFW" })).await.unwrap();
    let how = doc! { "failCommands": ["find"], "errorCode": SNAPSHOT_TOO_OLD, "namespace": &site.namespaces[0] };
    // Four of them are the links' looks for any document at all.
    site.nodes[HUB].fail(7, how).await.unwrap();
    site.launch();
    eventually("the page is read again", async || site.log().contains("reading the page again")).await;
    site.ready().await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_copy_carries_the_changes_of_the_stream_meanwhile() {
    const DOCUMENTS: i32 = 5_000;
    // The copy up of DFW's own zone, and the copy down to HOU, which watches DFW.
    for (source, destination) in [("DFW", HUB), (HUB, "HOU")] {
        let mut site = Site::own(PAIR, Options::default()).await;
        let documents = (0..DOCUMENTS).map(|id| doc! { "_id": id, "_pk": "DFW", "text": "x".repeat(8_000) });
        site.at(source).insert_many(documents).await.unwrap();
        // About ten pages, each of which takes a second.
        let slow = doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 1_000, "namespace": &site.namespaces[0], "appName": "spokesync" };
        let point = |mode: &str| doc! { "configureFailPoint": "failCommand", "mode": mode, "data": slow.clone() };
        site.nodes[source].admin(point("alwaysOn")).await.unwrap();
        site.launch();
        let filled = async || site.at(destination).estimated_document_count().await.unwrap();
        eventually("the copy has begun", async || filled().await > 0).await;
        // Documents that the copy has passed, and documents before it.
        for id in [0, DOCUMENTS - 1] {
            site.at(source).update_one(doc! { "_id": id }, doc! { "$set": { "changed": true } }).await.unwrap();
        }
        for id in [1, DOCUMENTS - 2] {
            site.at(source).delete_one(doc! { "_id": id }).await.unwrap();
        }
        site.at(source).insert_one(doc! { "_id": -1, "_pk": "DFW", "changed": true }).await.unwrap();
        eventually("the changes have arrived", async || {
            let changed = site.at(destination).count_documents(doc! { "changed": true }).await.unwrap();
            changed == 3 && site.at(destination).count_documents(doc! { "_id": 1 }).await.unwrap() == 0
        })
        .await;
        assert!(filled().await < u64::try_from(DOCUMENTS - 2).unwrap(), "the copy is still under way");
        // A document that the stream brings ahead of the copy, and that is gone before the copy comes there.
        site.at(source).insert_one(doc! { "_id": DOCUMENTS, "_pk": "DFW" }).await.unwrap();
        eventually("it has arrived", async || {
            site.at(destination).find_one(doc! { "_id": DOCUMENTS }).await.unwrap().is_some()
        })
        .await;
        site.at(source).delete_one(doc! { "_id": DOCUMENTS }).await.unwrap();
        site.nodes[source].admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
        site.ready().await;
        site.assert_converged().await;
        assert_eq!(site.own_collection("HOU", "foreign").count_documents(doc! {}).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_still_at_work_is_waited_for_and_a_silent_one_is_given_up() {
    let mut site = Site::own(PAIR, Options::default()).await;
    site.at(HUB).insert_many((0..10).map(|id| doc! { "_id": id, "_pk": "DFW" })).await.unwrap();
    // The hub answers every read of a zone after 40 s, and everything else at once.
    let how = doc! {
        "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 40_000, "namespace": &site.namespaces[0],
    };
    site.nodes[HUB].fail(1, how).await.unwrap();
    site.launch();
    eventually("the log says what is waited for", async || site.log().contains("the server is still at work")).await;
    site.ready().await;
    assert_eq!(restarts(&site, "DFW") + restarts(&site, "HOU"), 0, "{}", site.log());
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_confirms_nothing_is_told_within_seconds() {
    let set = Set::start("DFW", &Options::default()).await.unwrap();
    let mut site = Site::shared(&[("HOU", &["DFW"])]).await;
    site.adopt("DFW", &set.uri()).await;
    site.add("DFW", &[]);
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    set.stop_replication().await.unwrap();
    let (collection, one) = (site.at("DFW"), WriteConcern::builder().w(Acknowledgment::Nodes(1)).build());
    collection.insert_one(doc! { "_id": 2, "_pk": "DFW" }).write_concern(one).await.unwrap();
    eventually("the status says what is waited for", async || {
        let uplink = &site.spoke_status("DFW")["uplink"];
        uplink["last_error"].as_str().is_some_and(|error| error.contains("no majority"))
            && uplink["lag_seconds"].as_f64().is_some_and(|lag| lag > 3.0)
            && uplink["standstill_seconds"].as_f64().is_some()
    })
    .await;
    assert_eq!(site.log().matches("no majority of the replica set confirms writes").count(), 1);
    set.resume_replication().await.unwrap();
    eventually("it goes on", async || {
        site.at(HUB).find_one(doc! { "_id": 2 }).await.unwrap().is_some()
            && site.spoke_status("DFW")["uplink"]["standstill_seconds"].is_null()
    })
    .await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_takes_no_writes_is_told_within_seconds() {
    let mut site = Site::own(PAIR, Options::default()).await;
    site.start().await;
    site.settle().await;
    site.nodes[HUB].admin(doc! { "fsync": 1, "lock": true }).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    eventually("the status says what is waited for", async || {
        let uplink = &site.spoke_status("DFW")["uplink"];
        uplink["last_error"].as_str().is_some_and(|error| error.contains("is not confirmed"))
            && uplink["standstill_seconds"].as_f64().is_some()
    })
    .await;
    site.nodes[HUB].admin(doc! { "fsyncUnlock": 1 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    site.ready().await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_of_a_replica_set_is_told_with_the_right_one() {
    let mut site = Site::shared(PAIR).await;
    let wrong = site.uri("DFW").replace("replicaSet=rs", "replicaSet=edge");
    site.reach("DFW", &wrong);
    let (done, output) = site.command(&["check"]);
    assert!(!done && output.contains("its replica set is named \"rs\", not \"edge\""), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_collections_of_two_databases_are_kept_in_step() {
    let mut site = Site::shared(PAIR).await;
    let database = site.namespaces[0].split_once('.').unwrap().0.to_owned();
    site.namespaces.extend((0..40).map(|number| format!("{database}.c{number}")));
    site.namespaces.push(format!("{database}-two.c0"));
    site.start().await;
    for number in 0..site.namespaces.len() {
        site.collection("DFW", number).insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
        site.collection(HUB, number).insert_one(doc! { "_id": 2, "_pk": "DFW" }).await.unwrap();
    }
    let other = site.client("DFW").database(&database).collection::<Document>("other");
    other.insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.assert_converged().await;
    for number in 0..site.namespaces.len() {
        assert_eq!(site.collection("HOU", number).count_documents(doc! {}).await.unwrap(), 2);
    }
    let at_hub = site.client(HUB).database(&database).collection::<Document>("other");
    assert_eq!(at_hub.count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_refuse_to_scan_collections_stop_no_link() {
    let arguments = vec!["--setParameter".to_owned(), "notablescan=1".to_owned()];
    let mut site = Site::own(PAIR, Options { arguments, ..Options::default() }).await;
    // Two starts: the second one has former sessions to end, and old entries to look for.
    for start in 0..2 {
        site.start().await;
        site.at("DFW").insert_one(doc! { "_id": start, "_pk": "DFW" }).await.unwrap();
        site.at(HUB).insert_one(doc! { "_id": format!("hub {start}"), "_pk": "DFW" }).await.unwrap();
        site.settle().await;
        assert_eq!(restarts(&site, "DFW") + restarts(&site, "HOU"), 0, "{}", site.log());
        site.stop().await;
    }
    site.start().await;
    assert_eq!(site.at("HOU").count_documents(doc! {}).hint(by_id()).await.unwrap(), 4);
}

fn by_id() -> mongodb::options::Hint {
    mongodb::options::Hint::Keys(doc! { "_id": 1 })
}
