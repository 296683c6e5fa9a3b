//! The configuration is part of the state: what changes in it between two starts, or in a reload, is noticed.

use bson::doc;
use mongodb::options::CreateCollectionOptions;

use super::support::site::{HUB, Topology};
use super::support::{Site, eventually};

const PAIR: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &[])];

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_synced_again_is_copied_again_and_nothing_is_deleted() {
    let mut site = Site::shared(PAIR).await;
    let database = site.namespaces[0].split_once('.').unwrap().0.to_owned();
    let one = site.namespaces.clone();
    let both = vec![one[0].clone(), format!("{database}.other")];
    site.namespaces = both.clone();
    let documents = (0..3).map(|id| doc! { "_id": id, "_pk": "DFW", "n": 0 });
    site.collection("DFW", 1).insert_many(documents).await.unwrap();
    site.start().await;
    site.settle().await;
    site.stop().await;
    // While the collection is not synced, both sides change it.
    site.namespaces = one;
    site.start().await;
    site.settle().await;
    let other = |name: &str| site.client(name).database(&database).collection::<bson::Document>("other");
    other("DFW").insert_one(doc! { "_id": "at-spoke", "_pk": "DFW" }).await.unwrap();
    other("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 7 } }).await.unwrap();
    other(HUB).insert_one(doc! { "_id": "at-hub", "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    site.stop().await;
    site.namespaces = both;
    site.start().await;
    site.settle().await;
    assert!(site.command(&["resync", "DFW", "--wait"]).0);
    site.settle().await;
    for name in [HUB, "DFW"] {
        let there = site.collection(name, 1);
        assert_eq!(there.count_documents(doc! {}).await.unwrap(), 5, "{name}");
        assert_eq!(there.count_documents(doc! { "n": 7 }).await.unwrap(), 1, "{name}");
    }
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_partition_key_copies_everything_again_and_deletes_nothing() {
    let mut site = Site::shared(PAIR).await;
    let document = |id: &str, old: &str, new: &str| doc! { "_id": id, "_pk": old, "zone": new };
    site.at("DFW").insert_one(document("d", "other", "DFW")).await.unwrap();
    site.at(HUB).insert_one(document("h", "old", "HOU")).await.unwrap();
    site.start().await;
    site.settle().await;
    assert_eq!(site.at("HOU").count_documents(doc! {}).await.unwrap(), 0);
    site.stop().await;
    site.partition_key("zone");
    site.start().await;
    eventually("every document is in its zone", async || {
        let mut there = Vec::new();
        for (name, id) in [(HUB, "d"), ("DFW", "h"), ("HOU", "h")] {
            there.push(site.at(name).find_one(doc! { "_id": id }).await.unwrap().is_some());
        }
        there == [true; 3]
    })
    .await;
    assert!(site.at("DFW").find_one(doc! { "_id": "d" }).await.unwrap().is_some());
    assert!(site.log().contains("partition key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_left_in_the_middle_of_its_copy_is_purged_or_compared_later() {
    for policy in ["keep", "purge"] {
        let mut site = Site::shared(PAIR).await;
        site.on_unwatch("DFW", policy);
        site.watch("DFW", &["BIG"]);
        let documents = (0..20_000).map(|id| doc! { "_id": id, "_pk": "BIG", "text": "x".repeat(300) });
        site.at(HUB).insert_many(documents).await.unwrap();
        // An application of the spoke wrote it, and the copy does not come so far.
        site.at("DFW").insert_one(doc! { "_id": 99_999, "_pk": "BIG" }).await.unwrap();
        site.launch();
        eventually("the copy is under way", async || site.at("DFW").count_documents(doc! {}).await.unwrap() > 1).await;
        site.kill();
        site.watch("DFW", &[]);
        site.start().await;
        site.settle().await;
        let left = site.at("DFW").count_documents(doc! {}).await.unwrap();
        match policy {
            "purge" => assert_eq!(left, 1),
            // The last transaction may have been committed in the moment of the kill.
            _ => assert!((500..20_000).contains(&left), "{left}: nothing was copied, or the copy has ended"),
        }
        // What happens to the copied part meanwhile is brought with the next copy.
        site.at(HUB).delete_one(doc! { "_id": 7 }).await.unwrap();
        site.at(HUB).update_one(doc! { "_id": 8 }, doc! { "$set": { "text": "new" } }).await.unwrap();
        site.settle().await;
        site.stop().await;
        site.watch("DFW", &["BIG"]);
        site.start().await;
        site.settle().await;
        assert!(site.at("DFW").find_one(doc! { "_id": 99_999 }).await.unwrap().is_some(), "{policy}");
        site.at("DFW").delete_one(doc! { "_id": 99_999 }).await.unwrap();
        site.assert_converged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_a_reload_that_changes_the_spoke() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    assert!(site.command(&["pause", "DFW"]).0);
    let is_paused = |site: &Site| site.spoke_status("DFW")["state"] == "paused";
    eventually("it pauses", async || is_paused(&site)).await;
    site.watch("DFW", &[]);
    site.reload().await;
    eventually("the reload is done", async || site.log().contains("configuration read again")).await;
    eventually("the spoke is renewed", async || site.log().matches("paused=true").count() == 1).await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.at("HOU").insert_one(doc! { "_id": 2, "_pk": "HOU" }).await.unwrap();
    eventually("the other spoke goes on", async || site.at(HUB).find_one(doc! { "_id": 2 }).await.unwrap().is_some())
        .await;
    assert!(is_paused(&site));
    assert!(site.at(HUB).find_one(doc! { "_id": 1 }).await.unwrap().is_none());
    assert!(site.command(&["resume", "DFW"]).0);
    site.ready().await;
    site.settle().await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capped_collection_is_refused_in_words() {
    for name in [HUB, "DFW"] {
        let mut site = Site::shared(PAIR).await;
        let options = CreateCollectionOptions::builder().capped(true).size(1_000_000).build();
        let collection = site.at(name);
        let database = site.client(name).database(&collection.namespace().db);
        database.create_collection(collection.name()).with_options(options).await.unwrap();
        let (done, output) = site.command(&["check"]);
        assert!(!done && output.contains("capped"), "{output}");
        site.launch();
        eventually("the spoke is halted with the reason", async || {
            let Ok(status) = site.program.as_ref().unwrap().status() else { return false };
            let spokes = status["spokes"].as_array().unwrap().clone();
            spokes.iter().any(|spoke| {
                spoke["state"] == "halted"
                    && ["uplink", "downlink"]
                        .iter()
                        .any(|link| spoke[link]["last_error"].to_string().contains("capped"))
            })
        })
        .await;
    }
}
