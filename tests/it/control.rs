//! Changes that an operator makes while the program runs: to the configuration, and to single spokes.

use std::time::Duration;

use bson::doc;

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

async fn insert(site: &Site, name: &str, id: &str, zone: &str) {
    site.at(name).insert_one(doc! { "_id": id, "_pk": zone }).await.unwrap();
}

async fn count(site: &Site, name: &str, zone: &str) -> usize {
    site.zone(name, 0, zone).await.len()
}

fn restarts_of(site: &Site, zone: &str) -> usize {
    let actor = format!("spoke{{actor={zone}/spoke}}: starting");
    site.log().matches(&actor).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_is_added_widened_narrowed_and_removed_while_the_others_go_on() {
    let mut site = Site::shared(&[("DFW", &["HOU"]), ("HOU", &[])]).await;
    site.reserve("BOS").await;
    site.start().await;
    for id in ["1", "2"] {
        insert(&site, "DFW", &format!("DFW {id}"), "DFW").await;
        insert(&site, "HOU", &format!("HOU {id}"), "HOU").await;
    }
    site.assert_converged().await;

    // BOS is added.
    site.add("BOS", &["DFW"]);
    insert(&site, "BOS", "BOS 1", "BOS").await;
    site.reload().await;
    eventually("BOS streams", async || site.status()["spokes"].as_array().unwrap().len() == 3).await;
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(count(&site, "BOS", "DFW").await, 2);

    // BOS watches one more zone.
    site.watch("BOS", &["DFW", "HOU"]);
    site.reload().await;
    eventually("the wider zone is copied", async || count(&site, "BOS", "HOU").await == 2).await;
    site.ready().await;
    insert(&site, "HOU", "HOU 3", "HOU").await;
    site.assert_converged().await;

    // BOS watches a zone no longer, and its copy is purged.
    site.watch("BOS", &["HOU"]);
    site.on_unwatch("BOS", "purge");
    site.reload().await;
    eventually("the zone is purged", async || count(&site, "BOS", "DFW").await == 0).await;
    site.ready().await;
    insert(&site, "DFW", "DFW 3", "DFW").await;
    site.assert_converged().await;
    assert_eq!(count(&site, "BOS", "DFW").await, 0);

    // BOS watches the other zone no longer, and its copy is kept.
    site.on_unwatch("BOS", "keep");
    site.watch("BOS", &[]);
    site.reload().await;
    eventually("the status shows that BOS watches nothing", async || {
        site.spoke_status("BOS")["watch"].as_array().unwrap().is_empty()
    })
    .await;
    site.ready().await;
    site.at(HUB).delete_one(doc! { "_id": "HOU 1" }).await.unwrap();
    site.assert_converged().await;
    assert_eq!(count(&site, "BOS", "HOU").await, 3);

    // A kept zone is brought up to date after the next watch, including deletes.
    site.watch("BOS", &["HOU"]);
    site.reload().await;
    eventually("the kept zone is up to date", async || count(&site, "BOS", "HOU").await == 2).await;
    site.ready().await;
    site.assert_converged().await;

    // BOS is removed.
    site.remove("BOS");
    site.reload().await;
    eventually("BOS is gone", async || site.status()["spokes"].as_array().unwrap().len() == 2).await;
    insert(&site, "DFW", "DFW 4", "DFW").await;
    site.assert_converged().await;
    for zone in ["DFW", "HOU"] {
        assert_eq!(restarts_of(&site, zone), 1, "{zone} was restarted\n{}", site.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_is_unwatched_and_immediately_watched_again_misses_nothing() {
    let mut site = Site::shared(&[("DFW", &["HOU"]), ("HOU", &[])]).await;
    site.start().await;
    for round in 0..8 {
        insert(&site, "HOU", &format!("HOU before {round}"), "HOU").await;
        site.watch("DFW", &[]);
        site.reload().await;
        insert(&site, "HOU", &format!("HOU between {round}"), "HOU").await;
        insert(&site, "DFW", &format!("DFW {round}"), "DFW").await;
        site.watch("DFW", &["HOU"]);
        site.reload().await;
    }
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(count(&site, "DFW", "HOU").await, 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_gets_a_watcher_under_load_is_copied_completely() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &[])]).await;
    site.start().await;
    // Enough documents that some are still on their way back from the hub when the configuration changes.
    let messages = site.at("DFW");
    let writing = tokio::spawn(async move {
        for round in 0..120 {
            let document = |id| doc! { "_id": format!("{round} {id}"), "_pk": "DFW", "text": "x".repeat(2_000) };
            messages.insert_many((0..300).map(document)).await.unwrap();
        }
    });
    while !writing.is_finished() {
        for watch in [&["DFW"] as &[&str], &[]] {
            site.watch("HOU", watch);
            site.reload().await;
        }
    }
    writing.await.unwrap();
    site.watch("HOU", &["DFW"]);
    site.reload().await;
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(count(&site, "HOU", "DFW").await, 36_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_whose_content_the_stream_omits_is_read_for_a_new_watcher() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &[])]).await;
    site.start().await;
    // From the first changes the hub's stream learns the session of DFW's uplink.
    for id in ["first", "second"] {
        insert(&site, "DFW", id, "DFW").await;
        site.settle().await;
    }
    for round in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        site.watch("HOU", &["DFW"]);
        site.reload().await;
        let copied = 2 + round;
        eventually("the zone is copied", async || count(&site, "HOU", "DFW").await == copied).await;
        site.ready().await;
        // The hub's stream was opened while no other spoke took DFW's documents, and omits their content. Only after
        // two replies does the program reopen the stream.
        insert(&site, "DFW", &format!("late {round}"), "DFW").await;
        eventually("the late document has arrived", async || count(&site, "HOU", "DFW").await == copied + 1).await;
        site.assert_converged().await;
        site.watch("HOU", &[]);
        site.on_unwatch("HOU", "purge");
        site.reload().await;
        eventually("the zone is purged", async || count(&site, "HOU", "DFW").await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_is_reported() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.more_config = "[synch]\nnamespaces = []".to_owned();
    site.reload().await;
    let error = |site: &Site| site.status()["configuration_error"].clone();
    assert!(error(&site).as_str().unwrap().contains("synch"), "{}", error(&site));
    insert(&site, "DFW", "1", "DFW").await;
    site.assert_converged().await;
    site.more_config = String::new();
    site.reload().await;
    eventually("the error is gone", async || error(&site).is_null()).await;
    assert_eq!(restarts_of(&site, "DFW"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_can_be_paused_resumed_restarted_and_resynced() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    // Requests for unknown spokes and actions, or in the wrong state, are refused.
    let post = |site: &Site, path: &str| site.program.as_ref().unwrap().post(path).unwrap();
    assert_eq!(post(&site, "/api/v1/spokes/NYC/pause").0, 404);
    assert_eq!(post(&site, "/api/v1/spokes/DFW/explode").0, 404);
    assert_eq!(post(&site, "/api/v1/spokes/DFW/resume").0, 409);

    // A paused spoke carries nothing, and the others go on.
    assert_eq!(post(&site, "/api/v1/spokes/DFW/pause").0, 202);
    eventually("DFW is paused", async || site.spoke_status("DFW")["state"] == "paused").await;
    assert_eq!(site.program.as_ref().unwrap().get("/readyz").unwrap().0, 200);
    let (code, body) = post(&site, "/api/v1/spokes/DFW/restart");
    assert_eq!(code, 409);
    assert!(body["error"].as_str().unwrap().contains("resume"), "{body}");
    insert(&site, "DFW", "DFW 1", "DFW").await;
    insert(&site, "HOU", "HOU 1", "HOU").await;
    eventually("the others go on", async || count(&site, HUB, "HOU").await == 1).await;
    assert_eq!(count(&site, HUB, "DFW").await, 0);

    assert_eq!(post(&site, "/api/v1/spokes/DFW/resume").0, 202);
    site.assert_converged().await;
    assert_eq!(count(&site, "HOU", "DFW").await, 1);

    assert_eq!(post(&site, "/api/v1/spokes/DFW/restart").0, 202);
    site.assert_converged().await;

    // HOU deletes a document of another zone. No link carries the delete.
    let mut session = site.client("HOU").start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    site.at("HOU").delete_one(doc! { "_id": "DFW 1" }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
    site.settle().await;
    assert_eq!(count(&site, "HOU", "DFW").await, 0);
    assert_eq!(post(&site, "/api/v1/spokes/HOU/resync").0, 202);
    eventually("the copy is restored", async || count(&site, "HOU", "DFW").await == 1).await;
    site.ready().await;
    site.assert_converged().await;
    assert!(!site.log().contains("link failed"), "a restart by an operator is not a failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_spoke_is_never_unknown_while_it_is_started_with_another_configuration() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let mut codes = std::collections::BTreeSet::new();
    for round in 0..10 {
        site.watch("HOU", if round % 2 == 0 { &["BOS"] } else { &["DFW"] });
        site.write_config();
        site.program.as_ref().unwrap().process().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
        for _ in 0..30 {
            codes.insert(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/restart").unwrap().0);
        }
    }
    codes.remove(&202);
    codes.remove(&409);
    assert!(codes.is_empty(), "{codes:?}");
    site.ready().await;
    site.assert_converged().await;
}
