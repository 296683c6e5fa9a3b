//! Documents that a link does not find as expected: taken `_id`s, crossings of the two links, changes of ownership
//! within one batch. All sides end equal, or somebody is told; and whatever a decision removes is set aside.

use bson::{Bson, DateTime, Decimal128, Document, doc};
use mongodb::IndexModel;
use mongodb::options::IndexOptions;

use testbed::node::Options;

use super::support::site::{HUB, TRIANGLE, Topology};
use super::support::{Site, eventually};

/// Two spokes that watch nothing.
const PAIR: Topology<'static> = &[("DFW", &[]), ("HOU", &[])];

async fn unique_index(site: &Site, name: &str) {
    let options =
        IndexOptions::builder().unique(true).partial_filter_expression(doc! { "key": { "$exists": true } }).build();
    let index = IndexModel::builder().keys(doc! { "key": 1 }).options(options).build();
    site.at(name).create_index(index).await.unwrap();
}

async fn letters(site: &Site, name: &str) -> u64 {
    site.own_collection(name, "dead_letters").count_documents(doc! {}).await.unwrap()
}

async fn find(site: &Site, name: &str, id: &str) -> Option<Document> {
    site.at(name).find_one(doc! { "_id": id }).await.unwrap()
}

/// A site whose hub has the key 1 already.
async fn with_a_taken_key() -> Site {
    let mut site = Site::shared(PAIR).await;
    unique_index(&site, HUB).await;
    site.at(HUB).insert_one(doc! { "_id": "taken", "_pk": "YARD", "key": 1 }).await.unwrap();
    site.start().await;
    site
}

/// A site whose hub refuses the insert of DFW's document `own`, because another document has the key already.
async fn with_a_refused_insert() -> Site {
    let site = with_a_taken_key().await;
    site.at("DFW").insert_one(doc! { "_id": "own", "_pk": "DFW", "key": 1 }).await.unwrap();
    eventually("the hub refuses it", async || letters(&site, HUB).await == 1).await;
    site
}

async fn set(site: &Site, name: &str, id: &str, fields: Document) {
    site.at(name).update_one(doc! { "_id": id }, doc! { "$set": fields }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_document_is_not_overwritten_by_another_zones_of_the_same_id() {
    let mut site = Site::shared(&[("DFW", &["HOU"]), ("HOU", &[])]).await;
    let own = doc! { "_id": "x", "_pk": "DFW", "precious": true };
    site.at("DFW").insert_one(own.clone()).await.unwrap();
    site.at(HUB).insert_one(doc! { "_id": "x", "_pk": "HOU", "n": 1 }).await.unwrap();
    site.start().await;
    eventually("both ends tell the collision", async || {
        letters(&site, HUB).await == 1 && letters(&site, "DFW").await == 1
    })
    .await;
    assert_eq!(find(&site, "DFW", "x").await, Some(own.clone()));
    // Neither a retry nor a change of the other document touches it.
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    site.at("HOU").replace_one(doc! { "_id": "x" }, doc! { "_pk": "HOU", "n": 2 }).await.unwrap();
    site.settle().await;
    site.at(HUB).delete_one(doc! { "_id": "x" }).await.unwrap();
    site.settle().await;
    assert_eq!(find(&site, "DFW", "x").await, Some(own));
    // With the reason gone, the letters heal by themselves.
    eventually("the letters are gone", async || letters(&site, HUB).await + letters(&site, "DFW").await == 0).await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collision_ends_when_the_spokes_application_deletes_the_refused_document() {
    let mut site = Site::shared(&[("DFW", &["HOU"]), ("HOU", &[])]).await;
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "DFW" }).await.unwrap();
    let other = doc! { "_id": "x", "_pk": "HOU", "n": 1 };
    site.at(HUB).insert_one(other.clone()).await.unwrap();
    site.start().await;
    eventually("both ends tell the collision", async || {
        letters(&site, HUB).await == 1 && letters(&site, "DFW").await == 1
    })
    .await;
    site.at("DFW").delete_one(doc! { "_id": "x" }).await.unwrap();
    eventually("both letters are gone, and the spoke has the hub's document", async || {
        let letters = letters(&site, HUB).await + letters(&site, "DFW").await;
        letters == 0 && find(&site, "DFW", "x").await == Some(other.clone())
    })
    .await;
    assert_eq!(site.own_collection(HUB, "set_aside").count_documents(doc! {}).await.unwrap(), 2, "insert and delete");
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_letter_protects_its_document_in_a_resync_and_in_a_repair() {
    let site = with_a_refused_insert().await;
    assert!(site.command(&["dead-letters", "drop", "DFW"]).0);
    eventually("the letter is dropped", async || letters(&site, HUB).await == 0).await;
    assert!(site.command(&["resync", "DFW", "--wait"]).0);
    site.command(&["verify", "--repair"]);
    assert!(find(&site, "DFW", "own").await.is_some());
    // The hub accepts a later change, and the mark ends.
    set(&site, "DFW", "own", doc! { "key": 2 }).await;
    site.assert_converged().await;
    let marks = site.own_collection(HUB, "dropped_letters").count_documents(doc! {}).await.unwrap();
    assert_eq!(marks, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_heals_by_itself_when_its_reason_is_gone() {
    let site = with_a_refused_insert().await;
    site.at(HUB).delete_one(doc! { "_id": "taken" }).await.unwrap();
    eventually("the letter is gone", async || letters(&site, HUB).await == 0).await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_is_not_overwritten_at_its_source() {
    let site = with_a_taken_key().await;
    site.at("DFW").insert_one(doc! { "_id": "own", "_pk": "DFW", "n": { "a": 0 } }).await.unwrap();
    site.settle().await;
    set(&site, "DFW", "own", doc! { "key": 1, "price": 42 }).await;
    eventually("the hub refuses it", async || letters(&site, HUB).await == 1).await;
    set(&site, HUB, "own", doc! { "n.a": 1 }).await;
    site.settle().await;
    assert_eq!(find(&site, "DFW", "own").await.unwrap().get_i32("price").ok(), Some(42));
    // Once the refused change is accepted, both sides are equal again, and what it replaced at the hub is kept.
    site.at(HUB).delete_one(doc! { "_id": "taken" }).await.unwrap();
    eventually("the letter is gone", async || letters(&site, HUB).await == 0).await;
    eventually("the price is at the hub", async || {
        find(&site, HUB, "own").await.is_some_and(|document| document.get_i32("price").ok() == Some(42))
    })
    .await;
    site.assert_converged().await;
    let kept = site.own_collection(HUB, "set_aside").find_one(doc! { "_id.document": "own" }).await.unwrap().unwrap();
    assert_eq!(kept.get_document("document").unwrap().get_document("n").unwrap(), &doc! { "a": 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_handed_over_in_the_batch_of_its_insert_reaches_its_new_zone() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    site.in_one_batch(async || {
        for (id, insert) in [
            ("plain", doc! { "_id": "plain", "_pk": "DFW", "n": { "a": 0 } }),
            ("nested", doc! { "_id": "nested", "_pk": "DFW", "n": { "a": 0 } }),
            ("without key", doc! { "_id": "without key", "n": { "a": 0 } }),
        ] {
            site.at("DFW").insert_one(insert).await.unwrap();
            if id == "nested" {
                set(&site, "DFW", id, doc! { "n.a": 1 }).await;
            }
            set(&site, "DFW", id, doc! { "_pk": "HOU" }).await;
        }
        // The same within one transaction, whose changes all have one cluster time.
        let mut session = site.client("DFW").start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let insert = doc! { "_id": "transaction", "_pk": "DFW", "n": { "a": 0 } };
        site.at("DFW").insert_one(insert).session(&mut session).await.unwrap();
        for fields in [doc! { "n.a": 1 }, doc! { "_pk": "HOU" }] {
            let query = doc! { "_id": "transaction" };
            site.at("DFW").update_one(query, doc! { "$set": fields }).session(&mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
    })
    .await;
    for (id, nested) in [("plain", 0), ("nested", 1), ("without key", 0), ("transaction", 1)] {
        eventually(&format!("{id} is at HOU alone"), async || {
            let (hub, hou) = (find(&site, HUB, id).await, find(&site, "HOU", id).await);
            let value = hou.as_ref().and_then(|hou| hou.get_document("n").ok()?.get_i32("a").ok());
            hub == hou && value == Some(nested) && find(&site, "DFW", id).await.is_none()
        })
        .await;
    }
    assert_eq!(letters(&site, HUB).await + letters(&site, "HOU").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_insert_behind_a_nested_change_does_not_pass_for_it() {
    let mut site = Site::shared(PAIR).await;
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "DFW", "n": { "a": 0 } }).await.unwrap();
    site.start().await;
    site.in_one_batch(async || {
        set(&site, "DFW", "x", doc! { "n.a": 1 }).await;
        site.at("DFW").delete_one(doc! { "_id": "x" }).await.unwrap();
        site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "HOU", "local": true }).await.unwrap();
    })
    .await;
    site.settle().await;
    assert_eq!(find(&site, HUB, "x").await, None);
    assert!(find(&site, "DFW", "x").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_applications_nested_changes_and_moves_make_no_dead_letter() {
    let mut site = Site::shared(TRIANGLE).await;
    let documents =
        ["moved", "moved and back", "nested after"].map(|id| doc! { "_id": id, "_pk": "DFW", "n": { "a": 0 } });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.start().await;
    site.settle().await;
    site.in_one_batch(async || {
        for id in ["moved", "moved and back"] {
            set(&site, HUB, id, doc! { "n.a": 1 }).await;
            set(&site, HUB, id, doc! { "_pk": "HOU" }).await;
        }
        set(&site, HUB, "moved and back", doc! { "_pk": "DFW" }).await;
        set(&site, HUB, "nested after", doc! { "_pk": "HOU" }).await;
        set(&site, HUB, "nested after", doc! { "n.a": 2 }).await;
        site.at(HUB).insert_one(doc! { "_id": "new", "_pk": "DFW", "n": { "a": 0 } }).await.unwrap();
        set(&site, HUB, "new", doc! { "n.a": 3 }).await;
        set(&site, HUB, "new", doc! { "_pk": "HOU" }).await;
    })
    .await;
    eventually("all sides are equal", async || {
        let mut equal = true;
        for spoke in ["DFW", "HOU"] {
            for zone in ["DFW", "HOU"] {
                equal &= site.zone(HUB, 0, zone).await == site.zone(spoke, 0, zone).await;
            }
        }
        equal
    })
    .await;
    assert_eq!(letters(&site, "DFW").await + letters(&site, "HOU").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_move_that_crosses_a_hub_edit_or_a_hub_delete_ends_equal_everywhere() {
    let mut site = Site::shared(PAIR).await;
    let documents = ["edited", "deleted"].map(|id| doc! { "_id": id, "_pk": "DFW", "n": { "a": 0 } });
    site.at("DFW").insert_many(documents).await.unwrap();
    site.start().await;
    site.settle().await;
    site.in_one_batch(async || {
        for id in ["edited", "deleted"] {
            set(&site, "DFW", id, doc! { "_pk": "HOU" }).await;
        }
        set(&site, HUB, "edited", doc! { "ack": 1 }).await;
        site.at(HUB).delete_one(doc! { "_id": "deleted" }).await.unwrap();
    })
    .await;
    eventually("the sides agree", async || {
        let mut agree = true;
        for id in ["edited", "deleted"] {
            agree &= find(&site, HUB, id).await == find(&site, "HOU", id).await;
            agree &= find(&site, "DFW", id).await.is_none();
        }
        agree
    })
    .await;
    assert_eq!(letters(&site, HUB).await + letters(&site, "DFW").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_from_a_zone_that_was_left_comes_to_the_spokes_own_zone() {
    let mut site = Site::shared(&[("DFW", &["HOU"]), ("HOU", &[])]).await;
    site.at("HOU").insert_many(["a", "b"].map(|id| doc! { "_id": id, "_pk": "HOU" })).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    site.stop().await;
    site.watch("DFW", &[]);
    site.start().await;
    set(&site, "HOU", "a", doc! { "_pk": "DFW" }).await;
    set(&site, HUB, "b", doc! { "_pk": "DFW" }).await;
    eventually("DFW has both in its own zone", async || site.zone("DFW", 0, "DFW").await.len() == 2).await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_differ_only_in_the_type_of_a_number_are_one_document() {
    let mut site = Site::shared(PAIR).await;
    let documents = [doc! { "_id": { "k": 1 }, "_pk": "DFW" }, doc! { "_id": 4, "_pk": "DFW" }];
    site.at("DFW").insert_many(documents).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    let four: Decimal128 = "4.0".parse().unwrap();
    site.in_one_batch(async || {
        site.at(HUB).update_many(doc! {}, doc! { "$set": { "ack": 1 } }).await.unwrap();
        site.at("DFW").delete_many(doc! {}).await.unwrap();
        let again = [doc! { "_id": { "k": 1.0 }, "_pk": "DFW", "n": 1 }, doc! { "_id": four, "_pk": "DFW", "n": 1 }];
        site.at("DFW").insert_many(again).await.unwrap();
    })
    .await;
    eventually("both are equal", async || {
        let (hub, spoke) = (site.zone(HUB, 0, "DFW").await, site.zone("DFW", 0, "DFW").await);
        hub == spoke && hub.len() == 2
    })
    .await;
    assert_eq!(letters(&site, HUB).await + letters(&site, "DFW").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_with_an_array_as_partition_key_belongs_to_nobody() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    let array = doc! { "_id": "x", "_pk": ["DFW", "HOU"], "by": "hub" };
    site.at(HUB).insert_one(array.clone()).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "HOU" }).await.unwrap();
    set(&site, "DFW", "x", doc! { "forged": 1 }).await;
    site.at("DFW").delete_one(doc! { "_id": "x" }).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "DFW", "forged": 2 }).await.unwrap();
    site.settle().await;
    assert_eq!(find(&site, HUB, "x").await, Some(array));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_is_deleted_after_30_days_at_both_ends() {
    let mut site = Site::shared(PAIR).await;
    let day = 24 * 3_600 * 1_000;
    let now = DateTime::now().timestamp_millis();
    for name in [HUB, "DFW"] {
        let entry = |id: &str, days: i64| {
            let at = DateTime::from_millis(now - days * day);
            doc! { "_id": { "ns": "old.old", "document": id }, "at": at, "reason": "test" }
        };
        site.own_collection(name, "set_aside").insert_many([entry("old", 31), entry("young", 29)]).await.unwrap();
    }
    site.start().await;
    for name in [HUB, "DFW"] {
        let kept = site.own_collection(name, "set_aside");
        assert_eq!(kept.count_documents(doc! { "_id.document": "old" }).await.unwrap(), 0, "{name}");
        assert_eq!(kept.count_documents(doc! { "_id.document": "young" }).await.unwrap(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_without_a_key_that_both_sides_have_become_the_spokes() {
    let mut site = Site::shared(PAIR).await;
    let loaded: Vec<Document> = (0..100).map(|n| doc! { "_id": n, "n": n }).collect();
    site.at(HUB).insert_many(&loaded).await.unwrap();
    site.at("DFW").insert_many(&loaded).await.unwrap();
    site.at("DFW").update_one(doc! { "_id": 7 }, doc! { "$set": { "n": -7 } }).await.unwrap();
    site.start().await;
    site.settle().await;
    let stamped = doc! { "_pk": "DFW" };
    for name in [HUB, "DFW"] {
        let expected = if name == HUB { 99 } else { 100 };
        assert_eq!(site.at(name).count_documents(stamped.clone()).await.unwrap(), expected, "{name}");
    }
    // Different versions are a collision, and neither is touched.
    assert_eq!(letters(&site, HUB).await, 1);
    assert_eq!(site.at(HUB).find_one(doc! { "_id": 7 }).await.unwrap(), Some(doc! { "_id": 7, "n": 7 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_letter_protects_nothing_once_its_document_went_with_the_collection() {
    let site = with_a_refused_insert().await;
    assert!(site.command(&["dead-letters", "drop", "DFW"]).0);
    eventually("the letter is dropped", async || letters(&site, HUB).await == 0).await;
    site.at("DFW").drop().await.unwrap();
    eventually("the drop is noticed", async || site.log().contains("dropped or renamed at the spoke")).await;
    site.at(HUB).insert_one(doc! { "_id": "own", "_pk": "DFW", "by": "hub" }).await.unwrap();
    eventually("the hub's document comes down", async || find(&site, "DFW", "own").await.is_some()).await;
    site.assert_converged().await;
    assert_eq!(site.own_collection(HUB, "dropped_letters").count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_removed_is_listed_shown_and_restored() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "DFW", "n": 1 }).await.unwrap();
    site.assert_converged().await;
    site.in_one_batch(async || {
        set(&site, HUB, "x", doc! { "_pk": "HOU" }).await;
        set(&site, "DFW", "x", doc! { "n": 2 }).await;
    })
    .await;
    let all = async || -> Vec<serde_json::Value> {
        serde_json::from_str(&site.command_code(&["set-aside", "list", "--json"]).1).unwrap()
    };
    eventually("the change that came too late is set aside", async || !all().await.is_empty()).await;
    site.assert_converged().await;
    let listed = all().await;
    let shown: Vec<String> =
        listed.iter().map(|copy| site.command(&["set-aside", "show", copy["version"].as_str().unwrap()]).1).collect();
    assert!(shown.iter().any(|copy| copy.contains("\"n\": 2")), "{shown:?}");
    // A version is restored as by an application, if the `_id` is free.
    let kept = doc! {
        "_id": { "ns": site.namespaces[0].as_str(), "document": "y", "version": bson::oid::ObjectId::new() },
        "at": DateTime::now(), "reason": "a test", "document": { "_id": "y", "_pk": "DFW", "n": 3 },
    };
    let version = kept.get_document("_id").unwrap().get_object_id("version").unwrap().to_hex();
    site.own_collection("DFW", "set_aside").insert_one(kept).await.unwrap();
    let (is_well, text) = site.command(&["set-aside", "restore", &version]);
    assert!(is_well, "{text}");
    site.assert_converged().await;
    assert!(find(&site, HUB, "y").await.is_some());
    let (is_well, text) = site.command(&["set-aside", "restore", &version]);
    assert!(!is_well && text.contains("no server has a copy"), "{text}");
}

/// DFW watches HOU.
const WATCHER: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &[])];

/// A site with DFW's document `x` in HOU's zone, registered as foreign, and another one of the same `_id` at the hub in
/// a zone that nobody watches.
async fn with_a_foreign_document() -> (Site, Document) {
    let mut site = Site::shared(WATCHER).await;
    site.at(HUB).insert_one(doc! { "_id": "x", "_pk": "YARD", "n": 1 }).await.unwrap();
    site.start().await;
    let foreign = doc! { "_id": "x", "_pk": "HOU", "precious": true };
    site.at("DFW").insert_one(foreign.clone()).await.unwrap();
    eventually("it is registered", async || {
        site.own_collection("DFW", "foreign").count_documents(doc! {}).await.unwrap() == 1
    })
    .await;
    (site, foreign)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_written_in_another_spokes_zone_stays_although_the_hub_has_another_one_of_the_same_id() {
    let (site, foreign) = with_a_foreign_document().await;
    site.at(HUB).replace_one(doc! { "_id": "x" }, doc! { "_pk": "YARD", "n": 2 }).await.unwrap();
    site.at(HUB).delete_one(doc! { "_id": "x" }).await.unwrap();
    site.settle().await;
    eventually("nothing is unsettled", async || {
        site.own_collection("DFW", "unsettled").count_documents(doc! {}).await.unwrap() == 0
    })
    .await;
    assert_eq!(find(&site, "DFW", "x").await, Some(foreign));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_sets_aside_what_it_replaces_in_another_zone() {
    let mut site = Site::shared(&[("DFW", &["HOU", "yard"]), ("HOU", &[])]).await;
    // Whichever zone is copied first: one of them is the spoke's own.
    for (id, at_spoke, at_hub) in [("x", "HOU", "DFW"), ("y", "HOU", "yard"), ("z", "yard", "HOU")] {
        site.at("DFW").insert_one(doc! { "_id": id, "_pk": at_spoke, "from": "spoke" }).await.unwrap();
        site.at(HUB).insert_one(doc! { "_id": id, "_pk": at_hub, "from": "hub" }).await.unwrap();
    }
    site.start().await;
    site.assert_converged().await;
    for id in ["x", "y", "z"] {
        assert_eq!(find(&site, "DFW", id).await.unwrap().get_str("from").unwrap(), "hub", "{id}");
        let copy = doc! { "document.from": "spoke", "document._id": id };
        assert_eq!(site.own_collection("DFW", "set_aside").count_documents(copy).await.unwrap(), 1, "{id}");
    }
    assert_eq!(site.own_collection("DFW", "foreign").count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_a_newly_watched_zone_that_an_application_has_taken_in_another_zone_is_a_collision() {
    let (mut site, foreign) = with_a_foreign_document().await;
    site.stop().await;
    site.watch("DFW", &["HOU", "YARD"]);
    site.start().await;
    eventually("the collision is told", async || letters(&site, "DFW").await == 1).await;
    assert_eq!(find(&site, "DFW", "x").await, Some(foreign));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_document_that_moves_on_reaches_the_hub_in_its_new_zone() {
    let mut site = Site::shared(WATCHER).await;
    site.at(HUB).insert_one(doc! { "_id": "x", "_pk": "YARD" }).await.unwrap();
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "DFW", "n": 1 }).await.unwrap();
    eventually("the hub refuses it", async || letters(&site, HUB).await == 1).await;
    set(&site, "DFW", "x", doc! { "_pk": "HOU" }).await;
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    site.settle().await;
    assert_eq!(letters(&site, HUB).await, 1, "the _id is still taken");
    assert!(find(&site, "DFW", "x").await.is_some());
    site.at(HUB).delete_one(doc! { "_id": "x" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    let moved = Some(doc! { "_id": "x", "_pk": "HOU", "n": 1 });
    eventually("the hub has it", async || find(&site, HUB, "x").await == moved).await;
    eventually("the letter is gone", async || letters(&site, HUB).await == 0).await;
    site.assert_converged().await;
    assert_eq!(find(&site, "HOU", "x").await, moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_to_a_watched_zone_that_crosses_a_hub_edit_ends_equal() {
    let mut site = Site::shared(WATCHER).await;
    site.start().await;
    let ids: Vec<String> = (0..20).map(|n| format!("d{n}")).collect();
    site.at("DFW").insert_many(ids.iter().map(|id| doc! { "_id": id, "_pk": "DFW", "a": 1 })).await.unwrap();
    site.assert_converged().await;
    site.in_one_batch(async || {
        for id in &ids {
            set(&site, HUB, id, doc! { "a": 2 }).await;
            set(&site, "DFW", id, doc! { "a": 3, "_pk": "HOU" }).await;
        }
    })
    .await;
    site.assert_converged().await;
    let handed_over = site.at(HUB).count_documents(doc! { "_pk": "HOU", "a": 3 }).await.unwrap();
    assert_eq!(handed_over, 20);
}

/// A site whose hub refuses a change of DFW's document `own`, which the hub has.
async fn with_a_refused_change() -> Site {
    let site = with_a_taken_key().await;
    site.at("DFW").insert_one(doc! { "_id": "own", "_pk": "DFW" }).await.unwrap();
    site.assert_converged().await;
    set(&site, "DFW", "own", doc! { "key": 1, "precious": true }).await;
    eventually("the hub refuses it", async || letters(&site, HUB).await == 1).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_letter_was_dropped_is_set_aside_when_the_hub_moves_or_replaces_its_document() {
    let site = with_a_refused_change().await;
    assert!(site.command(&["dead-letters", "drop", "DFW"]).0);
    eventually("it is dropped", async || letters(&site, HUB).await == 0).await;
    let aside = site.own_collection("DFW", "set_aside");
    let kept = doc! { "_id.document": "own", "document.precious": true };
    site.at(HUB).replace_one(doc! { "_id": "own" }, doc! { "_pk": "DFW", "n": 1 }).await.unwrap();
    eventually("it is replaced", async || {
        find(&site, "DFW", "own").await.is_some_and(|own| own.contains_key("n") && !own.contains_key("precious"))
    })
    .await;
    assert_eq!(aside.count_documents(kept.clone()).await.unwrap(), 1);
    site.assert_converged().await;
    let site = with_a_refused_change().await;
    assert!(site.command(&["dead-letters", "drop", "DFW"]).0);
    eventually("it is dropped", async || letters(&site, HUB).await == 0).await;
    set(&site, HUB, "own", doc! { "_pk": "YARD" }).await;
    eventually("it leaves", async || find(&site, "DFW", "own").await.is_none()).await;
    let aside = site.own_collection("DFW", "set_aside");
    assert_eq!(aside.count_documents(kept).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_that_its_document_no_longer_has_is_set_aside_when_the_letter_ends() {
    let mut site = Site::own(PAIR, Options::default()).await;
    unique_index(&site, HUB).await;
    site.at(HUB).insert_one(doc! { "_id": "taken", "_pk": "YARD", "key": 1 }).await.unwrap();
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": "own", "_pk": "DFW" }).await.unwrap();
    site.assert_converged().await;
    // The hub's version comes down while the hub has not refused the changes yet.
    let slow = doc! {
        "failCommands": ["update"], "blockConnection": true, "blockTimeMS": 6_000, "namespace": &site.namespaces[0],
    };
    site.nodes[HUB].fail(1, slow).await.unwrap();
    set(&site, "DFW", "own", doc! { "key": 1, "precious": true, "again": 1 }).await;
    set(&site, "DFW", "own", doc! { "again": 2 }).await;
    site.at(HUB).replace_one(doc! { "_id": "own" }, doc! { "_pk": "DFW", "n": 1 }).await.unwrap();
    eventually("it comes down", async || find(&site, "DFW", "own").await.is_some_and(|own| own.contains_key("n")))
        .await;
    eventually("the hub refuses the change", async || letters(&site, HUB).await == 1).await;
    site.at(HUB).delete_one(doc! { "_id": "taken" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    eventually("the letter ends", async || letters(&site, HUB).await == 0).await;
    site.assert_converged().await;
    let aside = site.own_collection(HUB, "set_aside");
    let has = async |field: &str, value: Bson| {
        let field = format!("change.updateDescription.updatedFields.{field}");
        aside.count_documents(doc! { "_id.document": "own", field: value }).await.unwrap()
    };
    assert_eq!(has("precious", true.into()).await, 1);
    let all = aside.count_documents(doc! {}).await.unwrap();
    // What the document still has needs no copy.
    set(&site, "DFW", "own", doc! { "key": 2 }).await;
    site.assert_converged().await;
    assert_eq!(aside.count_documents(doc! {}).await.unwrap(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_document_stays_registered_while_another_zones_of_the_same_id_comes_and_goes() {
    let mut site = Site::shared(WATCHER).await;
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": "x", "_pk": "YARD" }).await.unwrap();
    let registered = async || site.own_collection("DFW", "foreign").count_documents(doc! {}).await.unwrap();
    eventually("it is registered", async || registered().await == 1).await;
    assert!(site.command(&["pause", "DFW"]).0);
    eventually("DFW is paused", async || site.spoke_status("DFW")["state"] == "paused").await;
    site.at("HOU").insert_one(doc! { "_id": "x", "_pk": "HOU" }).await.unwrap();
    eventually("it comes", async || find(&site, HUB, "x").await.is_some()).await;
    site.at("HOU").delete_one(doc! { "_id": "x" }).await.unwrap();
    eventually("it goes", async || find(&site, HUB, "x").await.is_none()).await;
    assert!(site.command(&["resume", "DFW"]).0);
    site.settle().await;
    assert_eq!(registered().await, 1);
    assert!(site.command(&["resync", "DFW", "--wait"]).0);
    assert!(find(&site, "DFW", "x").await.is_some());
}
