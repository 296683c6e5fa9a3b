//! The initial sync: documents from before the first start arrive while both sides go on writing, after any number of
//! interruptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Collection;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::Site;
use super::support::site::{HUB, TRIANGLE};

const ALL: [&str; 4] = [HUB, "DFW", "HOU", "BOS"];

async fn fill(collection: &Collection<Document>, zone: &str, ids: std::ops::Range<i32>, from: &str) {
    let documents = ids.map(|id| doc! { "_id": format!("{zone} {id}"), "_pk": zone, "from": from, "n": 0 });
    collection.insert_many(documents).await.unwrap();
}

async fn count(site: &Site, name: &str, filter: Document) -> u64 {
    site.at(name).count_documents(filter).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_from_before_the_first_start_reach_every_side_that_holds_their_zone() {
    let mut site = Site::shared(TRIANGLE).await;
    // Some documents of DFW's zone are at both sides, and some of these differ: the owner's version wins. Others are at
    // the hub only.
    fill(&site.at("DFW"), "DFW", 0..300, "owner").await;
    fill(&site.at(HUB), "DFW", 100..200, "owner").await;
    fill(&site.at(HUB), "DFW", 200..400, "hub").await;
    // HOU's zone is at the hub and in part at DFW, where some documents are outdated.
    fill(&site.at("HOU"), "HOU", 0..300, "owner").await;
    fill(&site.at(HUB), "HOU", 0..300, "owner").await;
    fill(&site.at("DFW"), "HOU", 0..50, "owner").await;
    fill(&site.at("DFW"), "HOU", 50..100, "before").await;
    site.at("BOS").insert_one(doc! { "_id": "unstamped" }).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    assert_eq!(count(&site, HUB, doc! { "_pk": "DFW", "from": "owner" }).await, 300);
    assert_eq!(count(&site, "DFW", doc! { "_pk": "DFW", "from": "hub" }).await, 100);
    assert_eq!(count(&site, "DFW", doc! { "_pk": "HOU", "from": "owner" }).await, 300);
    assert_eq!(count(&site, HUB, doc! { "_id": "unstamped", "_pk": "BOS" }).await, 1);
    assert_eq!(count(&site, "BOS", doc! {}).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_collections_need_no_copy_and_later_documents_arrive() {
    const COLLECTIONS: usize = 20;
    const AT_ONE_END: usize = 3;
    let mut site = Site::shared(TRIANGLE).await;
    let database = site.at(HUB).namespace().db;
    site.namespaces = (0..COLLECTIONS).map(|number| format!("{database}.c{number}")).collect();
    // Some collections do not exist, some are empty, and one has a document at one end.
    for number in 0..COLLECTIONS / 2 {
        let names = [HUB, "DFW", "HOU", "BOS"];
        for name in names {
            site.client(name).database(&database).create_collection(format!("c{number}")).await.unwrap();
        }
    }
    let document = |name: &str| doc! { "_id": name, "_pk": "DFW" };
    site.collection("DFW", AT_ONE_END).insert_one(document("before")).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    assert!(site.log().contains("nothing to copy from empty collections"), "{}", site.log());
    let copied = site.log().lines().filter(|line| line.contains("copying") && !line.contains(".c3")).count();
    assert_eq!(copied, 0, "{}", site.log());
    for number in [0, AT_ONE_END, COLLECTIONS - 1] {
        site.collection("DFW", number).insert_one(document("after")).await.unwrap();
    }
    site.assert_converged().await;
    for number in [0, AT_ONE_END, COLLECTIONS - 1] {
        let there = site.collection("HOU", number).count_documents(doc! { "_id": "after" }).await.unwrap();
        assert_eq!(there, 1, "collection {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_equal_already_is_not_written() {
    let mut site = Site::shared(TRIANGLE).await;
    for name in [HUB, "DFW", "HOU"] {
        fill(&site.at(name), "DFW", 0..100, "owner").await;
    }
    let mut streams = Vec::new();
    for name in ALL {
        streams.push(super::support::events::Events::watch(site.at(name)).await);
    }
    site.start().await;
    site.assert_converged().await;
    for mut stream in streams {
        assert_eq!(stream.so_far().await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_keeps_documents_of_a_watched_zone_that_the_hub_does_not_have() {
    let mut site = Site::shared(TRIANGLE).await;
    fill(&site.at("DFW"), "HOU", 0..10, "somebody").await;
    site.start().await;
    site.settle().await;
    assert_eq!(count(&site, "DFW", doc! { "_pk": "HOU" }).await, 10);
    assert_eq!(count(&site, HUB, doc! {}).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_all_types_are_copied_in_order() {
    let mut site = Site::shared(TRIANGLE).await;
    // More than one page, with `_id`s of five types.
    let mut documents = Vec::new();
    for (number, kind) in (0..12_000).zip([0, 1, 2, 3, 4].into_iter().cycle()) {
        let id: bson::Bson = match kind {
            0 => number.into(),
            1 => format!("text {number}").into(),
            2 => doc! { "number": number }.into(),
            3 => (f64::from(number) + 0.5).into(),
            _ => bson::oid::ObjectId::new().into(),
        };
        documents.push(doc! { "_id": id, "_pk": "DFW" });
        if number % 40 == 5 {
            documents.extend((0..3).map(|_| doc! { "_id": bson::oid::ObjectId::new(), "_pk": "BOS" }));
        }
    }
    site.at("DFW").insert_many(documents).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    assert_eq!(site.zone("HOU", 0, "DFW").await.len(), 12_000);
}

/// An application that inserts, changes and deletes documents of a zone until `stop` is set.
async fn write(
    collection: Collection<Document>,
    zone: &'static str,
    from: &'static str,
    stop: Arc<AtomicBool>,
    seed: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let some = format!("{zone} {}", rng.random_range(0..3_000));
        match rng.random_range(0..10) {
            0..3 => {
                let id = format!("{zone} {from} {next}");
                collection.insert_one(doc! { "_id": id, "_pk": zone, "n": 0 }).await.unwrap();
                next += 1;
            }
            3 => drop(collection.delete_one(doc! { "_id": some }).await.unwrap()),
            4 => drop(collection.update_one(doc! { "_id": some }, doc! { "$set": { "a.b": next } }).await.unwrap()),
            5 if from == "owner" => {
                collection.insert_one(doc! { "_id": format!("{zone} unstamped {next}") }).await.unwrap();
                next += 1;
            }
            _ => drop(collection.update_one(doc! { "_id": some }, doc! { "$inc": { "n": 1 } }).await.unwrap()),
        }
        // The program must be able to catch up while the writers go on, however slow the machine is.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initial_sync_that_is_interrupted_repeatedly_while_both_sides_write_ends_with_equal_sides() {
    let mut site = Site::shared(TRIANGLE).await;
    for zone in ["DFW", "HOU"] {
        fill(&site.at(zone), zone, 0..30_000, "owner").await;
        fill(&site.at(HUB), zone, 29_000..31_000, "hub").await;
    }
    fill(&site.at(HUB), "DFW", 40_000..60_000, "hub").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (seed, (place, zone, from)) in
        (0u64..).zip([("DFW", "DFW", "owner"), ("HOU", "HOU", "owner"), (HUB, "DFW", "hub"), (HUB, "HOU", "hub")])
    {
        writers.push(tokio::spawn(write(site.at(place), zone, from, stop.clone(), seed)));
    }
    // Kill the program shortly after each begin of a copy.
    let mut rng = StdRng::seed_from_u64(5);
    let copies = |site: &Site| site.log().matches(": copying").count();
    for round in 0..12 {
        let before = copies(&site);
        site.launch();
        super::support::eventually(&format!("a copy begins after the {before}th"), async || {
            copies(&site) > before || site.program.as_ref().unwrap().get("/readyz").is_ok_and(|(code, _)| code == 200)
        })
        .await;
        // Later rounds give a slow machine more time.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..400 + 150 * round))).await;
        site.kill();
    }
    assert!(site.log().contains("resumed=true"), "no copy was interrupted: {}", site.log());
    site.start().await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_is_watched_later_is_copied_then() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &[])]).await;
    site.start().await;
    fill(&site.at("HOU"), "HOU", 0..500, "owner").await;
    site.assert_converged().await;
    assert_eq!(count(&site, "DFW", doc! {}).await, 0);
    site.stop().await;
    site.watch("DFW", &["HOU"]);
    site.start().await;
    site.assert_converged().await;
    assert_eq!(count(&site, "DFW", doc! { "_pk": "HOU" }).await, 500);
}
