//! A link whose resume token has left the oplog reconciles: the missed changes arrive, deletes included, and none is
//! invented.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::doc;
use futures_util::TryStreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

/// A resume token of long ago, in the form of the server's own tokens.
const LONG_AGO: &str = "8200000001000000012B0229296E04";

/// Sets a link's checkpoint to a resume token that no oplog holds.
async fn lose(site: &Site, link: &str) {
    let (direction, zone) = link.split_once(':').unwrap();
    let name = if direction == "uplink" { HUB } else { zone };
    let set = doc! { "$set": { "token": { "_data": LONG_AGO } } };
    let done = site.own_collection(name, "checkpoints").update_one(doc! { "_id": link }, set).await.unwrap();
    assert_eq!(done.modified_count, 1, "{link}");
}

async fn values(site: &Site, name: &str, zone: &str) -> Vec<(String, i32)> {
    let documents = site.zone(name, 0, zone).await;
    let read =
        |document: &bson::RawDocumentBuf| (document.get_str("_id").unwrap().to_owned(), document.get_i32("n").unwrap());
    documents.iter().map(read).collect()
}

fn expected(values: &[(&str, i32)]) -> Vec<(String, i32)> {
    values.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect()
}

/// A site with these documents in DFW's and HOU's zone everywhere, and a stopped program.
async fn stopped_with(ids: &[&str]) -> Site {
    let mut site = Site::with_short_history(TRIANGLE).await;
    site.start().await;
    for zone in ["DFW", "HOU"] {
        let documents = ids.iter().map(|id| doc! { "_id": format!("{zone} {id}"), "_pk": zone, "n": 0 });
        site.at(zone).insert_many(documents).await.unwrap();
    }
    site.assert_converged().await;
    site.stop().await;
    site
}

async fn set(site: &Site, name: &str, id: &str, n: i32) {
    site.at(name).update_one(doc! { "_id": id }, doc! { "$set": { "n": n } }).await.unwrap();
}

async fn insert(site: &Site, name: &str, id: &str, zone: &str) {
    site.at(name).insert_one(doc! { "_id": id, "_pk": zone, "n": 1 }).await.unwrap();
}

async fn delete(site: &Site, name: &str, id: &str) {
    assert_eq!(site.at(name).delete_one(doc! { "_id": id }).await.unwrap().deleted_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_did_goes_up_when_the_uplink_has_lost_its_place() {
    let mut site = stopped_with(&["a", "b", "c", "d", "e"]).await;
    lose(&site, "uplink:DFW").await;
    set(&site, "DFW", "DFW a", 7).await;
    delete(&site, "DFW", "DFW b").await;
    insert(&site, "DFW", "DFW new", "DFW").await;
    site.at("DFW").insert_one(doc! { "_id": "DFW unstamped", "n": 2 }).await.unwrap();
    // Changes by hub applications during the stop come down as usual.
    set(&site, HUB, "DFW c", 8).await;
    delete(&site, HUB, "DFW d").await;
    insert(&site, HUB, "DFW hub", "DFW").await;
    site.start().await;
    site.assert_converged().await;
    assert!(site.log().contains("history lost, reconciling"), "{}", site.log());
    let all =
        expected(&[("DFW a", 7), ("DFW c", 8), ("DFW e", 0), ("DFW hub", 1), ("DFW new", 1), ("DFW unstamped", 2)]);
    assert_eq!(values(&site, HUB, "DFW").await, all);
    assert_eq!(values(&site, "HOU", "DFW").await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_did_comes_down_when_the_downlink_has_lost_its_place() {
    let mut site = stopped_with(&["a", "b", "c", "d"]).await;
    lose(&site, "downlink:DFW").await;
    // Hub applications and the owner change documents in DFW's own zone, and in HOU's zone, which DFW watches.
    set(&site, HUB, "DFW a", 7).await;
    delete(&site, HUB, "DFW b").await;
    insert(&site, HUB, "DFW hub", "DFW").await;
    set(&site, "DFW", "DFW c", 8).await;
    delete(&site, "DFW", "DFW d").await;
    insert(&site, "DFW", "DFW own", "DFW").await;
    set(&site, HUB, "HOU a", 7).await;
    delete(&site, HUB, "HOU b").await;
    set(&site, "HOU", "HOU c", 8).await;
    delete(&site, "HOU", "HOU d").await;
    insert(&site, "HOU", "HOU new", "HOU").await;
    site.start().await;
    site.assert_converged().await;
    let own = expected(&[("DFW a", 7), ("DFW c", 8), ("DFW hub", 1), ("DFW own", 1)]);
    assert_eq!(values(&site, "DFW", "DFW").await, own);
    assert_eq!(values(&site, "DFW", "HOU").await, expected(&[("HOU a", 7), ("HOU c", 8), ("HOU new", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_both_links_have_lost_their_place_data_wins_over_deletion() {
    let mut site = stopped_with(&["a", "b", "c"]).await;
    lose(&site, "uplink:DFW").await;
    lose(&site, "downlink:DFW").await;
    set(&site, "DFW", "DFW a", 7).await;
    delete(&site, "DFW", "DFW b").await;
    insert(&site, "DFW", "DFW own", "DFW").await;
    insert(&site, HUB, "DFW hub", "DFW").await;
    delete(&site, HUB, "HOU a").await;
    site.start().await;
    site.assert_converged().await;
    let own = expected(&[("DFW a", 7), ("DFW b", 0), ("DFW c", 0), ("DFW hub", 1), ("DFW own", 1)]);
    assert_eq!(values(&site, HUB, "DFW").await, own);
    assert_eq!(values(&site, "DFW", "HOU").await, expected(&[("HOU b", 0), ("HOU c", 0)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_an_application_wrote_in_another_zone_is_not_taken_for_a_deleted_one() {
    let mut site = Site::with_short_history(TRIANGLE).await;
    // Foreign documents from before the first start, and from later.
    insert(&site, "DFW", "HOU foreign before", "HOU").await;
    insert(&site, HUB, "HOU a", "HOU").await;
    insert(&site, HUB, "HOU b", "HOU").await;
    site.start().await;
    insert(&site, "DFW", "HOU foreign later", "HOU").await;
    insert(&site, "DFW", "HOU foreign brief", "HOU").await;
    delete(&site, "DFW", "HOU foreign brief").await;
    site.settle().await;
    site.stop().await;
    lose(&site, "downlink:DFW").await;
    delete(&site, HUB, "HOU a").await;
    site.start().await;
    site.settle().await;
    let all = expected(&[("HOU b", 1), ("HOU foreign before", 1), ("HOU foreign later", 1)]);
    assert_eq!(values(&site, "DFW", "HOU").await, all);
    assert_eq!(site.own_collection("DFW", "foreign").count_documents(doc! {}).await.unwrap(), 2);
    assert_eq!(values(&site, HUB, "HOU").await, expected(&[("HOU b", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_a_reconcile_deletes_are_set_aside() {
    let mut site = stopped_with(&["a", "b"]).await;
    lose(&site, "uplink:DFW").await;
    lose(&site, "downlink:DFW").await;
    // An application wrote one document during the stop, and the hub deleted another. Nothing distinguishes the two.
    insert(&site, "DFW", "HOU foreign", "HOU").await;
    delete(&site, HUB, "HOU a").await;
    site.start().await;
    site.assert_converged().await;
    let kept = site.own_collection("DFW", "set_aside").find(doc! {}).sort(doc! { "_id.document": 1 }).await.unwrap();
    let kept: Vec<_> = kept.try_collect().await.unwrap();
    let documents: Vec<_> = kept.iter().map(|kept| kept.get_document("document").unwrap().clone()).collect();
    let both = [doc! { "_id": "HOU a", "_pk": "HOU", "n": 0 }, doc! { "_id": "HOU foreign", "_pk": "HOU", "n": 1 }];
    assert_eq!(documents, both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_document_that_reaches_the_hub_from_its_owner_is_no_longer_foreign() {
    let mut site = Site::with_short_history(TRIANGLE).await;
    site.start().await;
    insert(&site, "DFW", "HOU both", "HOU").await;
    eventually("the foreign document is registered", async || {
        site.own_collection("DFW", "foreign").count_documents(doc! {}).await.unwrap() == 1
    })
    .await;
    insert(&site, "HOU", "HOU both", "HOU").await;
    site.assert_converged().await;
    site.stop().await;
    lose(&site, "downlink:DFW").await;
    delete(&site, HUB, "HOU both").await;
    site.start().await;
    site.assert_converged().await;
    assert_eq!(values(&site, "DFW", "HOU").await, expected(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_hub_refused_is_not_taken_for_a_deleted_one() {
    let mut site = Site::with_short_history(TRIANGLE).await;
    insert(&site, HUB, "the same", "BOS").await;
    site.start().await;
    insert(&site, "DFW", "the same", "DFW").await;
    site.settle().await;
    assert_eq!(site.spoke_status("DFW")["dead_letters"], 1);
    site.stop().await;
    lose(&site, "downlink:DFW").await;
    site.start().await;
    site.settle().await;
    assert_eq!(values(&site, "DFW", "DFW").await, expected(&[("the same", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_was_dropped_and_made_again_deletes_nothing_elsewhere() {
    let mut site = stopped_with(&["a", "b"]).await;
    site.at("DFW").drop().await.unwrap();
    insert(&site, "DFW", "DFW new", "DFW").await;
    lose(&site, "uplink:DFW").await;
    site.start().await;
    site.assert_converged().await;
    assert_eq!(values(&site, HUB, "DFW").await, expected(&[("DFW a", 0), ("DFW b", 0), ("DFW new", 1)]));
    assert!(site.log().contains("the collection is another one than before"), "{}", site.log());
    // The link knows the new collection now, so a document deleted in it is deleted everywhere.
    site.stop().await;
    lose(&site, "uplink:DFW").await;
    delete(&site, "DFW", "DFW a").await;
    site.start().await;
    site.assert_converged().await;
    assert_eq!(values(&site, HUB, "DFW").await, expected(&[("DFW b", 0), ("DFW new", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_lost_while_the_stream_is_open_is_reconciled_too() {
    let mut site = Site::own(TRIANGLE, testbed::node::Options::default()).await;
    site.start().await;
    insert(&site, "DFW", "DFW a", "DFW").await;
    site.assert_converged().await;
    const CAPPED_POSITION_LOST: i32 = 136;
    for name in ["DFW", HUB] {
        let data = doc! { "failCommands": ["getMore"], "errorCode": CAPPED_POSITION_LOST };
        site.nodes[name].fail(1, data).await.unwrap();
        insert(&site, "DFW", &format!("DFW {name}"), "DFW").await;
        insert(&site, HUB, &format!("HOU {name}"), "HOU").await;
        let lost = || site.log().matches("136").count();
        eventually("the place is lost", async || lost() > 0).await;
        site.ready().await;
        site.assert_converged().await;
    }
    let all = expected(&[("DFW DFW", 1), ("DFW a", 1), ("DFW hub", 1)]);
    assert_eq!(values(&site, "HOU", "DFW").await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconcile_that_is_interrupted_again_and_again_under_load_ends_equal() {
    let mut site = Site::with_short_history(TRIANGLE).await;
    site.start().await;
    for zone in ["DFW", "HOU"] {
        let documents = (0..20_000).map(|n| doc! { "_id": format!("{zone} {n:05}"), "_pk": zone, "n": 0 });
        site.at(zone).insert_many(documents).await.unwrap();
    }
    site.settle().await;
    // Both owners and a hub application write all the time.
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [("DFW", "DFW", 1), ("HOU", "HOU", 2), (HUB, "DFW", 3)]
        .into_iter()
        .map(|(name, zone, seed)| {
            let (collection, done) = (site.at(name), done.clone());
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                let mut changes = 0;
                while !done.load(Ordering::Relaxed) {
                    let id = format!("{zone} {:05}", random.random_range(0..20_000));
                    let filter = doc! { "_id": &id };
                    match random.random_range(0..10) {
                        0 => drop(collection.delete_one(filter).await.unwrap()),
                        1 => {
                            let put = doc! { "_id": &id, "_pk": zone, "n": -1 };
                            drop(collection.replace_one(filter, put).upsert(true).await.unwrap());
                        }
                        _ => {
                            let update = doc! { "$inc": { "n": 1 }, "$set": { format!("by {name}"): changes } };
                            drop(collection.update_one(filter, update).await.unwrap());
                        }
                    }
                    changes += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    // Two links at a time lose their place, and kills interrupt the reconciles.
    let mut random = StdRng::seed_from_u64(7);
    for links in [["uplink:DFW", "downlink:HOU"], ["downlink:DFW", "uplink:HOU"], ["uplink:DFW", "downlink:DFW"]] {
        site.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        for link in links {
            lose(&site, link).await;
        }
        for _ in 0..3 {
            site.launch();
            tokio::time::sleep(Duration::from_millis(random.random_range(300..1_200))).await;
            site.kill();
        }
        site.start().await;
    }
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    site.assert_converged().await;
}
