//! The effect of every kind of change, on uplinks and in the fan-out, at the hub and at the other spokes.

use bson::{Document, doc};

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

const ALL: [&str; 4] = [HUB, "DFW", "HOU", "BOS"];

async fn triangle() -> Site {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site
}

/// A site whose collections keep pre-images.
async fn triangle_with_pre_images() -> Site {
    let mut site = Site::shared(TRIANGLE).await;
    site.keep_pre_images(&ALL).await;
    site.start().await;
    site
}

/// The documents with this `_id` at the hub, DFW, HOU and BOS, after all changes have arrived.
async fn everywhere(site: &Site, id: i32) -> [Option<Document>; 4] {
    site.settle().await;
    present(site, id).await
}

async fn present(site: &Site, id: i32) -> [Option<Document>; 4] {
    let mut found = [const { None }; 4];
    for (place, name) in found.iter_mut().zip(ALL) {
        *place = site.at(name).find_one(doc! { "_id": id }).await.unwrap();
    }
    found
}

/// The result of [`everywhere`] if the hub, DFW and HOU hold the document, and BOS does not.
fn not_in_boston(document: Document) -> [Option<Document>; 4] {
    [Some(document.clone()), Some(document.clone()), Some(document), None]
}

const NOWHERE: [Option<Document>; 4] = [const { None }; 4];

mod uplink {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_insert_reaches_the_hub_and_the_watchers_only() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "speed": 70 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "DFW", "speed": 70 }));
        site.at("BOS").insert_one(doc! { "_id": 2, "_pk": "BOS" }).await.unwrap();
        let document = Some(doc! { "_id": 2, "_pk": "BOS" });
        assert_eq!(everywhere(&site, 2).await, [document.clone(), None, None, document]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_without_partition_key_gets_the_key_of_its_spoke() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "speed": 70 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "speed": 70, "_pk": "DFW" }));
        site.at("DFW").replace_one(doc! { "_id": 1 }, doc! { "speed": 71 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "speed": 71, "_pk": "DFW" }));
        site.at("DFW")
            .update_one(doc! { "_id": 1 }, doc! { "$unset": { "_pk": 1 }, "$set": { "a": 1 } })
            .await
            .unwrap();
        let stamped_again = doc! { "_id": 1, "speed": 71, "a": 1, "_pk": "DFW" };
        assert_eq!(everywhere(&site, 1).await, not_in_boston(stamped_again));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn replaces_updates_and_deletes_follow() {
        let site = triangle().await;
        let spoke = site.at("DFW");
        spoke.insert_one(doc! { "_id": 1, "_pk": "DFW", "speed": 70 }).await.unwrap();
        spoke.replace_one(doc! { "_id": 1 }, doc! { "_pk": "DFW", "heading": 90, "list": [1, 2, 3, 4] }).await.unwrap();
        spoke
            .update_one(doc! { "_id": 1 }, doc! { "$set": { "z": 1, "a": { "b": 2 } }, "$unset": { "heading": 1 } })
            .await
            .unwrap();
        let document = doc! { "_id": 1, "_pk": "DFW", "list": [1, 2, 3, 4], "a": { "b": 2 }, "z": 1 };
        assert_eq!(everywhere(&site, 1).await, not_in_boston(document));
        // A path with a dot, an array element and a truncated array travel as whole documents or as a pipeline.
        spoke.update_one(doc! { "_id": 1 }, doc! { "$set": { "a.c": 3, "list.0": 9 } }).await.unwrap();
        spoke.update_one(doc! { "_id": 1 }, doc! { "$push": { "list": { "$each": [], "$slice": 2 } } }).await.unwrap();
        let document = doc! { "_id": 1, "_pk": "DFW", "list": [9, 2], "a": { "b": 2, "c": 3 }, "z": 1 };
        assert_eq!(everywhere(&site, 1).await, not_in_boston(document));
        spoke.delete_one(doc! { "_id": 1 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, NOWHERE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_zones_document_stays_where_it_was_written() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "BOS" }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, [None, Some(doc! { "_id": 1, "_pk": "BOS" }), None, None]);
        assert_eq!(site.spoke_status("DFW")["uplink"]["foreign_total"], 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_spoke_can_change_no_other_zones_document_at_the_hub() {
        let site = triangle().await;
        let document = doc! { "_id": 1, "_pk": "HOU", "speed": 70, "at": { "mile": 1 } };
        site.at("HOU").insert_one(&document).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(document.clone()));
        // An application at DFW updates its copy, also in a way that requires the whole document, then replaces and
        // deletes the copy.
        for change in [doc! { "speed": 99 }, doc! { "at.mile": 99 }] {
            site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": change }).await.unwrap();
            site.settle().await;
            assert_eq!(site.at(HUB).find_one(doc! { "_id": 1 }).await.unwrap().as_ref(), Some(&document));
        }
        site.at("DFW").replace_one(doc! { "_id": 1 }, doc! { "_pk": "HOU", "mine": true }).await.unwrap();
        site.settle().await;
        site.at("DFW").delete_one(doc! { "_id": 1 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, [Some(document.clone()), None, Some(document), None]);
        assert_eq!(site.spoke_status("DFW")["uplink"]["foreign_total"], 3);
        // Whole versions of the copy stay at the spoke, as single fields do. The hub only keeps a trace of them.
        assert_eq!(site.own_collection(HUB, "set_aside").count_documents(doc! {}).await.unwrap(), 2);
        assert_eq!(site.own_collection(HUB, "unsettled").count_documents(doc! {}).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_update_of_a_document_that_the_hub_lacks_brings_it_whole() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "speed": 70 }).await.unwrap();
        site.settle().await;
        // The program is stopped while both sides change the document, so that neither side has seen the other's
        // change.
        let mut site = site;
        site.stop().await;
        site.at(HUB).delete_one(doc! { "_id": 1 }).await.unwrap();
        site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "speed": 71 } }).await.unwrap();
        site.start().await;
        let [hub, dfw, hou, _] = everywhere(&site, 1).await;
        assert_eq!(hub, dfw);
        assert_eq!(hub, hou);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_spoke_moves_its_document_to_a_zone_that_it_watches() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "speed": 70 }).await.unwrap();
        site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "HOU" } }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "HOU", "speed": 70 }));
        // The document belongs to HOU now, and HOU's changes reach every side that holds the zone.
        site.at("HOU").update_one(doc! { "_id": 1 }, doc! { "$set": { "speed": 71 } }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "HOU", "speed": 71 }));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_a_spoke_gives_to_another_zone_is_not_deleted_with_the_spokes_copy() {
        let mut site = triangle().await;
        for id in 0..4 {
            site.at("DFW").insert_one(doc! { "_id": id, "_pk": "DFW", "at": { "mile": 1 } }).await.unwrap();
        }
        site.settle().await;
        // All changes are in one batch.
        site.stop().await;
        let own = site.at("DFW");
        own.update_many(doc! { "_id": { "$ne": 1 } }, doc! { "$set": { "_pk": "HOU" } }).await.unwrap();
        own.replace_one(doc! { "_id": 1 }, doc! { "_pk": "HOU", "at": { "mile": 1 } }).await.unwrap();
        own.update_one(doc! { "_id": 2 }, doc! { "$set": { "at.mile": 2 } }).await.unwrap();
        own.delete_many(doc! {}).await.unwrap();
        // Document 3 returns to DFW's zone.
        own.insert_one(doc! { "_id": 3, "_pk": "HOU" }).await.unwrap();
        own.update_one(doc! { "_id": 3 }, doc! { "$set": { "_pk": "DFW", "back": true } }).await.unwrap();
        site.start().await;
        site.settle().await;
        for id in 0..3 {
            let theirs = Some(doc! { "_id": id, "_pk": "HOU", "at": { "mile": 1 } });
            let [hub, _, houston, _] = everywhere(&site, id).await;
            assert_eq!((hub, houston), (theirs.clone(), theirs));
        }
        assert_eq!(everywhere(&site, 3).await, not_in_boston(doc! { "_id": 3, "_pk": "DFW", "back": true }));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_a_spoke_moves_to_a_zone_that_it_does_not_hold_leaves_the_spoke() {
        let site = triangle().await;
        let moved = |id: i32| Some(doc! { "_id": id, "_pk": "BOS" });
        site.at("DFW").insert_many([doc! { "_id": 1, "_pk": "DFW" }, doc! { "_id": 2, "_pk": "DFW" }]).await.unwrap();
        site.settle().await;
        site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "BOS" } }).await.unwrap();
        site.at("DFW").replace_one(doc! { "_id": 2 }, doc! { "_pk": "BOS" }).await.unwrap();
        for id in [1, 2] {
            assert_eq!(everywhere(&site, id).await, [moved(id), None, None, moved(id)]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_id_in_two_zones_becomes_a_dead_letter_and_the_rest_flows() {
        let site = triangle().await;
        site.at("BOS").insert_one(doc! { "_id": 1, "_pk": "BOS", "first": true }).await.unwrap();
        site.settle().await;
        let documents = (0..20).map(|id| doc! { "_id": id, "_pk": "DFW" });
        site.at("DFW").insert_many(documents).await.unwrap();
        let bos = Some(doc! { "_id": 1, "_pk": "BOS", "first": true });
        let dfw = Some(doc! { "_id": 1, "_pk": "DFW" });
        assert_eq!(everywhere(&site, 1).await, [bos.clone(), dfw, None, bos]);
        assert_eq!(site.at("HOU").count_documents(doc! { "_pk": "DFW" }).await.unwrap(), 19);
        let letters = site.own_collection(HUB, "dead_letters");
        let letter = letters.find_one(doc! {}).await.unwrap().unwrap();
        assert_eq!(letter.get_document("_id").unwrap().get_i32("document").unwrap(), 1);
        assert_eq!(letter.get_document("reason").unwrap().get_i32("code").unwrap(), 11000);
        assert_eq!(letter.get_document("event").unwrap().get_str("operationType").unwrap(), "insert");
        assert!(letter.get_datetime("parked_at").is_ok());
        // Later changes of the document wait with the dead letter, and are counted.
        site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$set": { "a": 1 } }).await.unwrap();
        site.at("DFW").update_one(doc! { "_id": 2 }, doc! { "$set": { "a": 1 } }).await.unwrap();
        assert_eq!(everywhere(&site, 2).await, not_in_boston(doc! { "_id": 2, "_pk": "DFW", "a": 1 }));
        let letter = letters.find_one(doc! {}).await.unwrap().unwrap();
        assert_eq!(letter.get_i64("later_changes").unwrap(), 1);
        assert_eq!(site.spoke_status("DFW")["dead_letters"], 1);
    }
}

mod fan_out {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_hub_application_writes_reaches_the_owner_and_the_watchers() {
        let site = triangle().await;
        let hub = site.at(HUB);
        hub.insert_one(doc! { "_id": 1, "_pk": "DFW", "order": "go" }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "DFW", "order": "go" }));
        hub.replace_one(doc! { "_id": 1 }, doc! { "_pk": "DFW", "order": "wait" }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "DFW", "order": "wait" }));
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "to": { "x": 1 } } }).await.unwrap();
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "to.y": 2 } }).await.unwrap();
        let document = doc! { "_id": 1, "_pk": "DFW", "order": "wait", "to": { "x": 1, "y": 2 } };
        assert_eq!(everywhere(&site, 1).await, not_in_boston(document));
        hub.delete_one(doc! { "_id": 1 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, NOWHERE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_pre_images_deletes_and_replaces_concern_only_those_who_hold_the_zone() {
        let site = triangle_with_pre_images().await;
        let hub = site.at(HUB);
        hub.insert_many([doc! { "_id": 1, "_pk": "DFW" }, doc! { "_id": 2, "_pk": "DFW" }]).await.unwrap();
        site.settle().await;
        let before = site.spoke_status("BOS")["downlink"]["applied_total"].clone();
        hub.delete_one(doc! { "_id": 1 }).await.unwrap();
        hub.replace_one(doc! { "_id": 2 }, doc! { "_pk": "DFW", "a": 1 }).await.unwrap();
        hub.update_one(doc! { "_id": 2 }, doc! { "$set": { "b": 1 } }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, NOWHERE);
        assert_eq!(everywhere(&site, 2).await, not_in_boston(doc! { "_id": 2, "_pk": "DFW", "a": 1, "b": 1 }));
        assert_eq!(site.spoke_status("BOS")["downlink"]["applied_total"], before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delete_without_pre_image_touches_only_documents_of_zones_that_a_spoke_holds() {
        let site = triangle().await;
        // An application at BOS has written a document with the same `_id`, in a zone that BOS does not hold.
        site.at("BOS").insert_one(doc! { "_id": 1, "_pk": "HOU", "mine": true }).await.unwrap();
        site.at(HUB).insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
        site.settle().await;
        site.at(HUB).delete_one(doc! { "_id": 1 }).await.unwrap();
        let mine = Some(doc! { "_id": 1, "_pk": "HOU", "mine": true });
        assert_eq!(everywhere(&site, 1).await, [None, None, None, mine]);
    }

    /// A hub application moves document 1 by an update and document 2 by a replace, from DFW to BOS and back.
    async fn zone_moves(site: Site) {
        let hub = site.at(HUB);
        hub.insert_many([doc! { "_id": 1, "_pk": "DFW", "a": 1 }, doc! { "_id": 2, "_pk": "DFW", "a": 1 }])
            .await
            .unwrap();
        site.settle().await;
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "BOS" } }).await.unwrap();
        hub.replace_one(doc! { "_id": 2 }, doc! { "_pk": "BOS", "a": 1 }).await.unwrap();
        for id in [1, 2] {
            let moved = Some(doc! { "_id": id, "_pk": "BOS", "a": 1 });
            assert_eq!(everywhere(&site, id).await, [moved.clone(), None, None, moved]);
        }
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "HOU" } }).await.unwrap();
        hub.replace_one(doc! { "_id": 2 }, doc! { "_pk": "HOU", "a": 1 }).await.unwrap();
        for id in [1, 2] {
            assert_eq!(everywhere(&site, id).await, not_in_boston(doc! { "_id": id, "_pk": "HOU", "a": 1 }));
        }
        // DFW and HOU hold both zones, so the document stays at both. Then both documents leave all zones.
        hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "DFW" } }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "DFW", "a": 1 }));
        hub.update_one(doc! { "_id": 1 }, doc! { "$unset": { "_pk": 1 } }).await.unwrap();
        hub.replace_one(doc! { "_id": 2 }, doc! { "a": 1 }).await.unwrap();
        for id in [1, 2] {
            assert_eq!(everywhere(&site, id).await, [Some(doc! { "_id": id, "a": 1 }), None, None, None]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_changes_zone_moves_to_the_spokes_of_its_new_zone() {
        zone_moves(triangle().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_changes_zone_moves_to_the_spokes_of_its_new_zone_with_pre_images() {
        zone_moves(triangle_with_pre_images().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_is_moved_and_then_deleted_at_the_hub_is_gone_everywhere() {
        for mut site in [triangle().await, triangle_with_pre_images().await] {
            for id in 0..3 {
                site.at(HUB).insert_one(doc! { "_id": id, "_pk": "DFW" }).await.unwrap();
            }
            site.settle().await;
            site.stop().await;
            let hub = site.at(HUB);
            hub.replace_one(doc! { "_id": 0 }, doc! { "_pk": "HOU" }).await.unwrap();
            hub.update_one(doc! { "_id": 1 }, doc! { "$set": { "_pk": "HOU" } }).await.unwrap();
            hub.replace_one(doc! { "_id": 2 }, doc! { "_pk": "HOU" }).await.unwrap();
            hub.replace_one(doc! { "_id": 2 }, doc! { "_pk": "BOS" }).await.unwrap();
            hub.delete_many(doc! { "_id": { "$lt": 2 } }).await.unwrap();
            site.start().await;
            for id in 0..2 {
                assert_eq!(everywhere(&site, id).await, NOWHERE);
            }
            let in_boston = Some(doc! { "_id": 2, "_pk": "BOS" });
            assert_eq!(everywhere(&site, 2).await, [in_boston.clone(), None, None, in_boston]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_owner_of_a_document_that_came_from_the_hub_can_change_it() {
        let site = triangle().await;
        site.at(HUB).insert_one(doc! { "_id": 1, "_pk": "DFW", "n": 0 }).await.unwrap();
        site.settle().await;
        site.at("DFW").update_one(doc! { "_id": 1 }, doc! { "$inc": { "n": 5 } }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, not_in_boston(doc! { "_id": 1, "_pk": "DFW", "n": 5 }));
        site.at("DFW").delete_one(doc! { "_id": 1 }).await.unwrap();
        assert_eq!(everywhere(&site, 1).await, NOWHERE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_zone_without_a_spoke_reaches_those_who_watch_it() {
        let mut site = Site::shared(&[("DFW", &["YARD"]), ("HOU", &[])]).await;
        site.start().await;
        site.at(HUB).insert_one(doc! { "_id": 1, "_pk": "YARD" }).await.unwrap();
        site.at(HUB).update_one(doc! { "_id": 1 }, doc! { "$set": { "a": 1 } }).await.unwrap();
        site.assert_converged().await;
        assert_eq!(site.zone("DFW", 0, "YARD").await.len(), 1);
        assert_eq!(site.at("HOU").count_documents(doc! {}).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dropped_collection_is_dropped_nowhere_else() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
        site.settle().await;
        site.at(HUB).drop().await.unwrap();
        eventually("the drop is noticed", async || site.log().contains("dropped or renamed at the hub")).await;
        site.at(HUB).insert_one(doc! { "_id": 2, "_pk": "DFW" }).await.unwrap();
        eventually("the stream goes on", async || present(&site, 2).await[1].is_some()).await;
        assert!(present(&site, 1).await[1].is_some() && present(&site, 1).await[2].is_some());
        site.at("DFW").drop().await.unwrap();
        site.at("DFW").insert_one(doc! { "_id": 3, "_pk": "DFW" }).await.unwrap();
        eventually("the spoke's stream goes on", async || present(&site, 3).await[2].is_some()).await;
        assert!(present(&site, 2).await[0].is_some(), "the hub keeps the documents that the spoke dropped");
        eventually("each side gets back the documents that it dropped", async || {
            futures_util::future::join_all([1, 2, 3].map(|id| present(&site, id)))
                .await
                .iter()
                .flatten()
                .flatten()
                .count()
                == 9
        })
        .await;
        site.assert_converged().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_of_a_document_that_a_drop_has_taken_deletes_it_nowhere_else() {
        let site = triangle().await;
        site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW", "n": { "a": 0 } }).await.unwrap();
        site.assert_converged().await;
        for (name, told) in [("DFW", "dropped or renamed at the spoke"), (HUB, "dropped or renamed at the hub")] {
            // The change is carried after the drop, and asks for the whole document.
            site.in_one_batch(async || {
                site.at(name).update_one(doc! { "_id": 1 }, doc! { "$set": { "n.a": 1 } }).await.unwrap();
                site.at(name).drop().await.unwrap();
            })
            .await;
            eventually("the drop is noticed", async || site.log().contains(told)).await;
            eventually("the side that dropped it gets it back", async || {
                present(&site, 1).await[..3].iter().all(Option::is_some)
            })
            .await;
            site.assert_converged().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_several_databases_are_kept_apart() {
    let mut site = Site::shared(TRIANGLE).await;
    let database = site.namespaces[0].split('.').next().unwrap().to_owned();
    site.namespaces = vec![format!("{database}.a"), format!("{database}.b.c"), format!("{database}_other.a")];
    site.start().await;
    for (number, value) in [(0, "first"), (1, "second"), (2, "third")] {
        site.collection("DFW", number).insert_one(doc! { "_id": 1, "_pk": "DFW", "in": value }).await.unwrap();
        site.collection(HUB, number).insert_one(doc! { "_id": 2, "_pk": "HOU", "in": value }).await.unwrap();
    }
    site.client("DFW").database(&database).collection("x").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.assert_converged().await;
    for (number, value) in [(0, "first"), (1, "second"), (2, "third")] {
        for (name, id) in [(HUB, 1), ("HOU", 1), ("DFW", 2)] {
            let found = site.collection(name, number).find_one(doc! { "_id": id }).await.unwrap().unwrap();
            assert_eq!(found.get_str("in").unwrap(), value);
        }
    }
    let unsynced = site.client(HUB).database(&database).collection::<Document>("x");
    assert_eq!(unsynced.count_documents(doc! {}).await.unwrap(), 0);
}
