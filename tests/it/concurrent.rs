//! The hub and the owner of a document edit the document at the same time: both sides end equal, in any order of the
//! edits.

use bson::{Bson, Document, doc};
use mongodb::Collection;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::Site;
use super::support::site::HUB;

/// Makes a random edit of one of four fields, so that edits often meet.
async fn edit(collection: &Collection<Document>, id: i32, rng: &mut StdRng) {
    let filter = doc! { "_id": id };
    let field = ["a", "b", "c", "d"][rng.random_range(0..4)];
    let value: i32 = rng.random_range(0..1_000);
    let result = match rng.random_range(0..9) {
        0 => collection.delete_one(filter).await.map(drop),
        1 => collection.insert_one(doc! { "_id": id, "_pk": "DFW", field: value }).await.map(drop),
        2 => collection.replace_one(filter, doc! { field: value, "_pk": "DFW" }).await.map(drop),
        3 => collection.update_one(filter, doc! { "$unset": { field: 1 } }).await.map(drop),
        4 => collection.update_one(filter, doc! { "$set": { format!("{field}.x"): value } }).await.map(drop),
        _ => collection.update_one(filter, doc! { "$set": { field: value } }).await.map(drop),
    };
    // An insert of an existing document, or a path into a number, is refused and changes nothing.
    drop(result);
}

/// Edits documents at the hub and at DFW at the same time.
pub fn edit_at_both(site: &Site, ids: i32, edits: usize, seed: u64) -> impl Future<Output = ()> + use<> {
    let editor = |name: &str, seed: u64| {
        let collection = site.at(name);
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..edits {
                let id = rng.random_range(0..ids);
                edit(&collection, id, &mut rng).await;
            }
        })
    };
    let (hub, owner) = (editor(HUB, seed), editor("DFW", seed + 1));
    async {
        hub.await.unwrap();
        owner.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_documents_edited_on_both_sides_converge() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &["DFW"])]).await;
    site.start().await;
    for round in 0..6 {
        // Even rounds edit many documents once or twice, odd rounds few documents many times.
        edit_at_both(&site, if round % 2 == 0 { 200 } else { 5 }, 400, 100 * round).await;
        site.assert_converged().await;
    }
    assert!(site.at(HUB).count_documents(doc! { "_pk": "DFW" }).await.unwrap() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_edits_converge_across_restarts() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &["DFW"])]).await;
    site.start().await;
    for round in 0..6 {
        let editing = edit_at_both(&site, 30, 300, 1_000 + 100 * round);
        // The kill comes in the middle of the edits, at a different moment in each round.
        tokio::time::sleep(std::time::Duration::from_millis(40 * round)).await;
        site.kill();
        site.launch();
        editing.await;
        edit_at_both(&site, 30, 30, 2_000 + 100 * round).await;
        site.ready().await;
        site.assert_converged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_different_fields_merge_and_no_increment_is_lost() {
    const EDITS: i32 = 300;
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "count": 0, "label": 0 }).await.unwrap();
    site.settle().await;
    let (owner, hub) = (site.at("DFW"), site.at(HUB));
    let counting = tokio::spawn(async move {
        for _ in 0..EDITS {
            owner.update_one(doc! { "_id": 1 }, doc! { "$inc": { "count": 1 } }).await.unwrap();
        }
    });
    for label in 1..=EDITS {
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "label": label } }).await.unwrap();
    }
    counting.await.unwrap();
    site.assert_converged().await;
    let found = site.at(HUB).find_one(doc! { "_id": 1 }).await.unwrap().unwrap();
    assert_eq!(found, doc! { "_id": 1, "_pk": "DFW", "count": EDITS, "label": EDITS });
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_added_on_both_sides_end_in_the_hubs_order() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let documents = (0..50).map(|id| doc! { "_id": id, "_pk": "DFW" });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.settle().await;
    site.stop().await;
    // Neither side knows the other's field. The names occur in both orders, so that no order is right by luck.
    for id in 0..50 {
        let names: [&str; 2] = if id % 2 == 0 { ["x", "a"] } else { ["a", "x"] };
        site.at(HUB).update_one(doc! { "_id": id }, doc! { "$set": { names[0]: Bson::from("hub") } }).await.unwrap();
        site.at("DFW").update_one(doc! { "_id": id }, doc! { "$set": { names[1]: Bson::from("dfw") } }).await.unwrap();
    }
    site.start().await;
    site.assert_converged().await;
    let found = site.at("DFW").find_one(doc! { "_id": 0 }).await.unwrap().unwrap();
    assert_eq!((found.get_str("x").unwrap(), found.get_str("a").unwrap()), ("hub", "dfw"));
}
