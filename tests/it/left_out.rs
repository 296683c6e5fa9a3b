//! As long as no hub application edits a zone, the owner's changes are left out of the hub's change stream. From a hub
//! edit on, the stream includes them.

use bson::doc;

use super::concurrent::edit_at_both;
use super::support::site::HUB;
use super::support::{Site, eventually};

/// Number of events that the hub's stream has delivered so far.
fn brought(site: &Site) -> u64 {
    site.status()["hub"]["events_total"].as_u64().unwrap()
}

/// Number of events that the hub's stream delivers for an insert and an update of a document at DFW.
async fn brings(site: &Site) -> u64 {
    let before = brought(site);
    let own = site.at("DFW");
    let id = own.insert_one(doc! { "_pk": "DFW" }).await.unwrap().inserted_id;
    site.settle().await;
    own.update_one(doc! { "_id": id }, doc! { "$set": { "a": 1 } }).await.unwrap();
    site.settle().await;
    brought(site) - before
}

async fn left_out(site: &Site) {
    eventually("own changes are left out", async || brings(site).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_changes_are_left_out_of_the_hubs_stream_until_a_hub_edit() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &["BOS"]), ("BOS", &[])]).await;
    site.start().await;
    left_out(&site).await;
    // Edits of other zones change nothing.
    site.at("BOS").insert_one(doc! { "_id": "other", "_pk": "BOS" }).await.unwrap();
    site.at(HUB).update_one(doc! { "_id": "other" }, doc! { "$set": { "a": 1 } }).await.unwrap();
    site.settle().await;
    assert_eq!(brings(&site).await, 0);
    for id in ["1", "2"] {
        site.at(HUB).insert_one(doc! { "_id": id, "_pk": "DFW" }).await.unwrap();
        site.settle().await;
        assert_eq!(brings(&site).await, 2, "hub edit {id}");
    }
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_edits_of_a_zone_whose_own_changes_were_left_out_converge() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    for round in 0..4 {
        site.start().await;
        left_out(&site).await;
        edit_at_both(&site, if round % 2 == 0 { 200 } else { 5 }, 300, 3_000 + 100 * round).await;
        site.assert_converged().await;
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_leaves_a_zone_that_is_left_out_reaches_its_new_zone() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &[])]).await;
    site.start().await;
    let own = site.at("DFW");
    for id in 0..4 {
        own.insert_one(doc! { "_id": id, "_pk": "DFW", "a": id }).await.unwrap();
    }
    left_out(&site).await;
    for id in 0..2 {
        own.update_one(doc! { "_id": id }, doc! { "$set": { "_pk": "HOU" } }).await.unwrap();
    }
    for id in 2..4 {
        own.replace_one(doc! { "_id": id }, doc! { "_pk": "HOU", "a": id }).await.unwrap();
    }
    // Another document of the same batch stays in the zone.
    own.insert_one(doc! { "_id": 4, "_pk": "DFW" }).await.unwrap();
    let there = site.at("HOU");
    eventually("all four documents have arrived", async || {
        there.count_documents(doc! { "_pk": "HOU" }).await.unwrap() == 4
    })
    .await;
    site.assert_converged().await;
    left_out(&site).await;
}
