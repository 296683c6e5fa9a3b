//! The program is killed repeatedly while applications write: nothing is lost, nothing arrives twice, nothing goes back
//! in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Collection;
use mongodb::change_stream::event::{ChangeStreamEvent, OperationType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::Site;
use super::support::events::Events;
use super::support::site::{HUB, TRIANGLE};

/// An application at a spoke, which increments a counter, and inserts and updates other documents, without
/// transactions.
struct Application {
    collection: Collection<Document>,
    zone: &'static str,
    /// Makes an update from the number of changes so far.
    update: fn(i32) -> Document,
    rng: StdRng,
}

impl Application {
    /// Works until `stop` is set, and returns the number of changes.
    async fn run(mut self, stop: Arc<AtomicBool>) -> usize {
        let counter = format!("{} counter", self.zone);
        self.collection.insert_one(doc! { "_id": &counter, "_pk": self.zone, "n": 0_i64 }).await.unwrap();
        let mut changes = 1;
        let mut documents = 0;
        while !stop.load(Ordering::Relaxed) {
            self.collection.update_one(doc! { "_id": &counter }, doc! { "$inc": { "n": 1_i64 } }).await.unwrap();
            changes += 1;
            if documents == 0 || self.rng.random_ratio(1, 3) {
                let some = self.rng.random_range(1..20);
                let new = |id| doc! { "_id": format!("{} {id}", self.zone), "v": { "a": 0 }, "n": 0, "_pk": self.zone };
                let mut new: Vec<Document> = (documents..documents + some).map(new).collect();
                // A document without partition key is read whole after its stamping, including all changes up to then.
                // So that every change can be counted, no change is made to such a document.
                new.push(doc! { "_id": format!("{} unstamped {documents}", self.zone), "n": 0 });
                changes += self.collection.insert_many(new).await.unwrap().inserted_ids.len();
                documents += some;
            }
            let id = format!("{} {}", self.zone, self.rng.random_range(0..documents));
            let update = (self.update)(i32::try_from(changes).unwrap());
            changes +=
                usize::try_from(self.collection.update_one(doc! { "_id": id }, update).await.unwrap().modified_count)
                    .unwrap();
        }
        changes
    }
}

/// Runs an application at DFW and another at HOU while the program is killed and started again. Returns the number of
/// changes of each.
async fn kill_under_load(site: &mut Site, kills: u32, update: fn(i32) -> Document) -> (usize, usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let start = |zone: &'static str, site: &Site| {
        let collection = site.at(zone);
        tokio::spawn(Application { collection, zone, update, rng: StdRng::seed_from_u64(7) }.run(stop.clone()))
    };
    let (dfw, hou) = (start("DFW", site), start("HOU", site));
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..900))).await;
        site.kill();
        site.launch();
    }
    site.ready().await;
    stop.store(true, Ordering::Relaxed);
    (dfw.await.unwrap(), hou.await.unwrap())
}

fn id_of(event: &ChangeStreamEvent<Document>) -> &str {
    event.document_key.as_ref().unwrap().get_str("_id").unwrap()
}

/// The values of a counter in the order of events.
fn counter(events: &[ChangeStreamEvent<Document>], id: &str) -> Vec<i64> {
    let of_counter = events.iter().filter(|event| id_of(event) == id);
    let value = |event: &ChangeStreamEvent<Document>| match (&event.full_document, &event.update_description) {
        (Some(document), _) => document.get_i64("n").unwrap(),
        (None, Some(update)) => update.updated_fields.get_i64("n").unwrap(),
        (None, None) => panic!("{event:?}"),
    };
    of_counter.map(value).collect()
}

fn of_zone<'a>(
    events: &'a [ChangeStreamEvent<Document>],
    zone: &'a str,
) -> impl Iterator<Item = &'a ChangeStreamEvent<Document>> {
    events.iter().filter(move |event| id_of(event).starts_with(zone))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_every_change_arrives_once_and_in_order() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let (mut hub, mut watcher) = (Events::watch(site.at(HUB)).await, Events::watch(site.at("HOU")).await);
    let (dfw, hou) = kill_under_load(&mut site, 12, |n| doc! { "$set": { "n": n } }).await;
    site.assert_converged().await;
    let (hub, watcher) = (hub.so_far().await, watcher.so_far().await);
    for (zone, changes) in [("DFW", dfw), ("HOU", hou)] {
        assert_eq!(of_zone(&hub, zone).count(), changes, "changes of {zone} at the hub\n{}", site.log());
        let id = format!("{zone} counter");
        let values = counter(&hub, &id);
        assert!(values.is_sorted_by(|one, other| one + 1 == *other), "{values:?}");
    }
    assert_eq!(of_zone(&watcher, "DFW").count(), dfw, "changes of DFW at HOU\n{}", site.log());
    assert!(counter(&watcher, "DFW counter").is_sorted_by(|one, other| one + 1 == *other));
    assert!(watcher.iter().all(|event| event.operation_type != OperationType::Delete));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_documents_that_are_read_whole_never_go_back_in_time() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let mut hub = Events::watch(site.at(HUB)).await;
    // After an update of a path with a dot the document is read whole, in a version newer than the event.
    kill_under_load(&mut site, 8, |n| doc! { "$set": { "v.a": n, "n": n } }).await;
    site.assert_converged().await;
    let hub = hub.so_far().await;
    for zone in ["DFW", "HOU"] {
        let values = counter(&hub, &format!("{zone} counter"));
        assert!(values.is_sorted(), "{values:?}");
        let mut versions = std::collections::HashMap::new();
        for event in of_zone(&hub, zone) {
            let id = id_of(event);
            let new = match (&event.full_document, &event.update_description) {
                (Some(document), _) => document.get_i32("n"),
                (None, Some(update)) => update.updated_fields.get_i32("n"),
                (None, None) => panic!("{event:?}"),
            };
            let Ok(new) = new else { continue };
            let old = versions.insert(id.to_owned(), new);
            assert!(old <= Some(new), "{id} went from {old:?} back to {new}");
        }
    }
}
