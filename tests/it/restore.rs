//! Servers that are restored from a backup, lose their disk, or are another replica set than configured.

use bson::{Document, doc};
use testbed::node::Options;

use super::support::site::{HUB, Topology};
use super::support::{Site, eventually};

/// DFW and HOU watch each other, and a zone that only hub applications write.
const WATCHERS: Topology<'static> = &[("DFW", &["HOU", "YARD"]), ("HOU", &["DFW"])];

async fn find(site: &Site, name: &str, id: &str) -> Option<Document> {
    site.at(name).find_one(doc! { "_id": id }).await.unwrap()
}

async fn insert(site: &Site, name: &str, ids: &[&str], zone: &str) {
    let documents = ids.iter().map(|id| doc! { "_id": *id, "_pk": zone, "n": 0 });
    site.at(name).insert_many(documents).await.unwrap();
}

async fn set(site: &Site, name: &str, id: &str, n: i32) {
    site.at(name).update_one(doc! { "_id": id }, doc! { "$set": { "n": n } }).await.unwrap();
}

async fn n_of(site: &Site, name: &str, id: &str) -> Option<i32> {
    find(site, name, id).await.map(|found| found.get_i32("n").unwrap())
}

/// A site with a backup of one server, and changes since.
async fn with_a_backup_of(name: &str) -> Site {
    let mut site = Site::own(WATCHERS, Options::default()).await;
    insert(&site, "DFW", &["d0", "d1", "d2", "d3", "d4"], "DFW").await;
    insert(&site, "HOU", &["h0", "h1"], "HOU").await;
    site.start().await;
    site.settle().await;
    site.stop().await;
    site.nodes.get_mut(name).unwrap().back_up().await.unwrap();
    site.start().await;
    insert(&site, "DFW", &["day-spoke"], "DFW").await;
    insert(&site, HUB, &["day-hub"], "DFW").await;
    insert(&site, HUB, &["day-yard"], "YARD").await;
    insert(&site, "HOU", &["day-hou"], "HOU").await;
    set(&site, "DFW", "d0", 1).await;
    set(&site, HUB, "d1", 2).await;
    site.at("DFW").delete_one(doc! { "_id": "d4" }).await.unwrap();
    site.settle().await;
    site.assert_converged().await;
    site
}

/// What applications wrote since the backup is everywhere, and what they wrote at the restored server as well.
async fn assert_nothing_lost(site: &mut Site) {
    eventually("the restore is noticed, and the comparison has ended", async || {
        let restored = doc! { "reconciling": { "$regex": "restored" } };
        let mut waiting = 0;
        for name in [HUB, "DFW", "HOU"] {
            waiting += site.own_collection(name, "checkpoints").count_documents(restored.clone()).await.unwrap();
        }
        // A quiet link notices with its next save: only the documents tell that every link has.
        let mut has_all = true;
        for name in [HUB, "DFW"] {
            let expected = doc! { "_id": { "$in": ["day-spoke", "day-hub", "day-hou", "after"] } };
            has_all &= site.at(name).count_documents(expected).await.is_ok_and(|documents| documents == 4);
            has_all &= site.at(name).count_documents(doc! { "_id": "d1", "n": 2 }).await.is_ok_and(|found| found == 1);
            has_all &= site.at(name).count_documents(doc! { "_id": "d0", "n": 1 }).await.is_ok_and(|found| found == 1);
        }
        waiting == 0 && has_all && site.log().contains("was restored from a backup")
    })
    .await;
    site.ready().await;
    site.settle().await;
    for name in [HUB, "DFW"] {
        for id in ["day-spoke", "day-hub", "day-hou", "after"] {
            assert!(find(site, name, id).await.is_some(), "{id} at {name}");
        }
        assert_eq!(n_of(site, name, "d0").await, Some(1), "{name}");
        assert_eq!(n_of(site, name, "d1").await, Some(2), "{name}");
        assert_eq!(n_of(site, name, "d2").await, Some(3), "{name}");
    }
    for zone in ["DFW", "HOU"] {
        let at_hub = site.zone(HUB, 0, zone).await;
        assert_eq!(at_hub, site.zone("DFW", 0, zone).await, "{zone} at DFW");
        assert_eq!(at_hub, site.zone("HOU", 0, zone).await, "{zone} at HOU");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_restored_while_the_program_is_stopped_gets_back_what_the_hub_has() {
    let mut site = with_a_backup_of("DFW").await;
    site.stop().await;
    site.nodes.get_mut("DFW").unwrap().restore().await.unwrap();
    insert(&site, "DFW", &["after"], "DFW").await;
    set(&site, "DFW", "d2", 3).await;
    site.start().await;
    assert_nothing_lost(&mut site).await;
    // A resync afterwards deletes nothing.
    assert!(site.command(&["resync", "DFW", "--wait"]).0);
    site.settle().await;
    assert_nothing_lost(&mut site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_restored_while_the_program_runs_gets_back_what_the_hub_has() {
    let mut site = with_a_backup_of("DFW").await;
    site.nodes.get_mut("DFW").unwrap().restore().await.unwrap();
    insert(&site, "DFW", &["after"], "DFW").await;
    set(&site, "DFW", "d2", 3).await;
    assert_nothing_lost(&mut site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_hub_gets_back_what_the_spokes_have_and_what_hub_applications_wrote() {
    for is_running in [false, true] {
        let mut site = with_a_backup_of(HUB).await;
        if !is_running {
            site.stop().await;
        }
        site.nodes.get_mut(HUB).unwrap().restore().await.unwrap();
        insert(&site, HUB, &["after"], "DFW").await;
        set(&site, HUB, "d2", 3).await;
        if !is_running {
            site.start().await;
        }
        assert_nothing_lost(&mut site).await;
        // No spoke brings documents of a zone without an owner: they stay at the watchers.
        assert!(find(&site, "DFW", "day-yard").await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_its_disk_while_the_program_runs_is_filled_again() {
    for name in ["DFW", HUB] {
        let mut site = Site::own(&[("DFW", &["HOU"]), ("HOU", &["DFW"])], Options::default()).await;
        // The lost replica set has had more elections than the new one.
        for _ in 0..2 {
            let node = &site.nodes[name];
            drop(node.admin(doc! { "replSetStepDown": 1, "force": true }).await);
            eventually("there is a primary again", async || {
                node.admin(doc! { "hello": 1 }).await.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap())
            })
            .await;
        }
        insert(&site, "DFW", &["d0", "d1"], "DFW").await;
        insert(&site, "HOU", &["h0"], "HOU").await;
        site.start().await;
        site.settle().await;
        site.nodes.get_mut(name).unwrap().wipe().await.unwrap();
        let uri = site.uri(name).to_owned();
        site.adopt(name, &uri).await;
        eventually("it has all documents again", async || {
            site.at(name).count_documents(doc! {}).await.is_ok_and(|documents| documents == 3)
        })
        .await;
        site.ready().await;
        site.assert_converged().await;
        assert_eq!(site.at(HUB).count_documents(doc! {}).await.unwrap(), 3);
        assert!(site.log().contains("is another replica set than before"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_its_metadata_while_the_program_runs_is_copied_again_and_nothing_is_deleted() {
    let mut site = Site::shared(WATCHERS).await;
    insert(&site, "DFW", &["d0", "d1"], "DFW").await;
    insert(&site, "HOU", &["h0", "h1"], "HOU").await;
    site.start().await;
    site.assert_converged().await;
    for name in ["DFW", HUB] {
        site.client(name).database(&site.metadata()).drop().await.unwrap();
        let told = format!("{} is another replica set", if name == HUB { "hub" } else { "spoke DFW" });
        eventually("it is noticed", async || {
            insert(&site, "HOU", &[&format!("later {}", bson::oid::ObjectId::new())], "HOU").await;
            site.log().contains(&told)
        })
        .await;
        site.ready().await;
        set(&site, "DFW", "d0", 7).await;
        set(&site, HUB, "h1", 8).await;
        site.assert_converged().await;
        assert!(find(&site, HUB, "d1").await.is_some() && find(&site, "DFW", "h0").await.is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_is_configured_twice_is_refused_by_name() {
    for (zone, other, words) in [("DFW", HUB, "the replica set of the hub"), ("DFW", "HOU", "the replica set of spoke")]
    {
        let mut site = Site::shared(&[("DFW", &[]), ("HOU", &["DFW"])]).await;
        let alias = site.uri(other).replace("127.0.0.1", "localhost");
        site.reach(zone, &alias);
        let (done, output) = site.command(&["check"]);
        assert!(!done && output.contains(words), "{output}");
        site.launch();
        eventually("the spoke is halted with the reason", async || {
            let Ok(status) = site.program.as_ref().unwrap().status() else { return false };
            let spokes = status["spokes"].as_array().unwrap().clone();
            spokes.iter().any(|spoke| {
                let uplink = &spoke["uplink"];
                uplink["state"] == "halted" && uplink["last_error"].as_str().is_some_and(|error| error.contains(words))
            })
        })
        .await;
    }
}

/// A running site with this document in its own zone, and a backup of one server that is seconds old.
async fn with_a_young_backup_of(name: &str, zone: &str, id: &str) -> Site {
    let mut site = Site::own(&[("DFW", &[]), ("HOU", &[])], Options::default()).await;
    site.start().await;
    insert(&site, zone, &[id], zone).await;
    site.assert_converged().await;
    site.nodes.get_mut(name).unwrap().back_up().await.unwrap();
    site.ready().await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_changed_its_zone_since_the_hubs_backup_is_a_dead_letter_and_can_be_settled() {
    let mut site = with_a_young_backup_of(HUB, "HOU", "moved").await;
    site.at(HUB).update_one(doc! { "_id": "moved" }, doc! { "$set": { "_pk": "DFW" } }).await.unwrap();
    site.assert_converged().await;
    site.nodes.get_mut(HUB).unwrap().restore().await.unwrap();
    insert(&site, HUB, &["after"], "DFW").await;
    eventually("the hub refuses the spoke's version", async || {
        let letter = doc! { "_id.document": "moved", "_id.link": "uplink:DFW" };
        site.own_collection(HUB, "dead_letters").count_documents(letter).await.is_ok_and(|letters| letters == 1)
    })
    .await;
    eventually("the other spoke gets the hub's version", async || find(&site, "HOU", "moved").await.is_some()).await;
    assert!(find(&site, "DFW", "moved").await.is_some());
    site.at("DFW").delete_one(doc! { "_id": "moved" }).await.unwrap();
    eventually("the letters end", async || site.spoke_status("DFW")["dead_letters"] == 0).await;
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(find(&site, HUB, "moved").await.unwrap().get_str("_pk").ok(), Some("HOU"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_noticed_although_no_checkpoint_was_saved_since_the_backup() {
    let mut site = with_a_young_backup_of("DFW", "DFW", "old").await;
    insert(&site, "DFW", &["young"], "DFW").await;
    eventually("the hub has it", async || find(&site, HUB, "young").await.is_some()).await;
    site.nodes.get_mut("DFW").unwrap().restore().await.unwrap();
    eventually("the restored spoke gets it back", async || find(&site, "DFW", "young").await.is_some()).await;
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(site.spoke_status("DFW")["dead_letters"], 0);
}
