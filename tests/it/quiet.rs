//! When applications stop writing, no change happens anywhere, although the streams stay open.

use std::time::Duration;

use bson::doc;
use testbed::node::Options;
use testbed::proxy::Proxy;

use super::support::Site;
use super::support::events::Events;
use super::support::site::{HUB, TRIANGLE};

#[tokio::test(flavor = "multi_thread")]
async fn quiet_applications_mean_quiet_streams() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    for zone in ["DFW", "HOU", "BOS"] {
        let documents = (0..50).map(|id| doc! { "_id": format!("{zone} {id}"), "_pk": zone, "n": 0 });
        site.at(zone).insert_many(documents).await.unwrap();
        site.at(zone).insert_one(doc! { "_id": format!("{zone} unstamped") }).await.unwrap();
        site.at(zone)
            .update_many(doc! { "_pk": zone }, doc! { "$inc": { "n": 1 }, "$set": { "a.b": 1 } })
            .await
            .unwrap();
        site.at(HUB).update_many(doc! { "_pk": zone }, doc! { "$set": { "hub": 1 } }).await.unwrap();
    }
    site.assert_converged().await;
    let mut streams = Vec::new();
    for name in [HUB, "DFW", "HOU", "BOS"] {
        streams.push((name, Events::watch(site.at(name)).await));
    }
    let applied = |site: &Site| -> Vec<u64> {
        let links = ["DFW", "HOU", "BOS"].map(|zone| site.spoke_status(zone));
        links
            .iter()
            .flat_map(|spoke| ["uplink", "downlink"].map(|link| spoke[link]["applied_total"].as_u64().unwrap()))
            .collect()
    };
    let before = applied(&site);
    // The absence of events cannot be awaited. Every quiet stream answers three times in three seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(applied(&site), before);
    for (name, mut stream) in streams {
        let events = stream.so_far().await;
        assert!(events.is_empty(), "{name}: {events:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_one_event_on_every_side() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let mut streams = Vec::new();
    for name in [HUB, "DFW", "HOU", "BOS"] {
        streams.push((name, Events::watch(site.at(name)).await));
    }
    for n in 0..20 {
        site.at("DFW").insert_one(doc! { "_id": n, "_pk": "DFW" }).await.unwrap();
        site.at("DFW").update_one(doc! { "_id": n }, doc! { "$set": { "n": n } }).await.unwrap();
    }
    site.settle().await;
    for (name, mut stream) in streams {
        let expected = if name == "BOS" { 0 } else { 40 };
        assert_eq!(stream.so_far().await.len(), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_go_to_no_other_spoke_do_not_come_back_from_the_hub() {
    const BYTES: usize = 1_000_000;
    let mut site = Site::own(&[("DFW", &["HOU"]), ("HOU", &[])], Options::default()).await;
    let wire = Proxy::to(site.nodes[HUB].port()).await.unwrap();
    site.reach(HUB, &wire.uri());
    site.start().await;
    let write = async |zone: &str, id: i32, text: &str| {
        let id = format!("{zone} {id}");
        let document = doc! { "_id": &id, "_pk": zone, "text": text.repeat(BYTES) };
        site.at(zone).replace_one(doc! { "_id": id }, document).upsert(true).await.unwrap();
        site.settle().await;
    };
    // The first documents may come back: from them the hub's stream learns the session of each uplink.
    for zone in ["DFW", "HOU"] {
        write(zone, 0, "x").await;
        write(zone, 1, "x").await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Inserts, and then replacements of the same documents.
    for text in ["y", "z"] {
        let brings = async |zone: &str| {
            let before = wire.bytes().from_server;
            for id in 2..10 {
                write(zone, id, text).await;
            }
            wire.bytes().from_server - before
        };
        let (taken, not_taken) = (brings("HOU").await, brings("DFW").await);
        assert!(taken > 8 * BYTES as u64, "{text}: {taken}");
        assert!(not_taken < 8 * BYTES as u64 / 10, "{text}: {not_taken}");
    }
    site.assert_converged().await;
}
