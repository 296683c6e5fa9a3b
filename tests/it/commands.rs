//! The commands that inspect a running process or the servers.

use bson::doc;
use mongodb::IndexModel;
use mongodb::options::IndexOptions;

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn status_and_logs_show_the_running_process() {
    let mut site = Site::shared(TRIANGLE).await;
    let (done, text) = site.command(&["status"]);
    assert!(!done && text.contains("nothing answers at") && text.contains("spokesync run"), "{text}");
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    let (done, text) = site.command(&["status"]);
    assert!(done && text.starts_with("hub streaming, 1 change streams"), "{text}");
    for zone in ["DFW", "HOU", "BOS"] {
        assert!(text.lines().any(|line| line.contains(zone) && line.contains("streaming")), "{text}");
    }
    let (done, json) = site.command(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(done && json["spokes"].as_array().unwrap().len() == 3);
    let (done, text) = site.command(&["logs", "DFW/reader", "--level", "info"]);
    assert!(done && text.contains("DFW/reader#1: nothing to copy") && !text.contains("HOU/"), "{text}");
    let (done, text) = site.command(&["logs", "NYC/reader"]);
    assert!(!done && text.contains("there is no actor NYC/reader"), "{text}");
    let (done, text) = site.command(&["pause", "DFW"]);
    assert!(done && text.contains("pause accepted"), "{text}");
    eventually("DFW is paused", async || site.spoke_status("DFW")["state"] == "paused").await;
    let (done, text) = site.command(&["pause", "DFW"]);
    assert!(!done && text.contains("paused already"), "{text}");
    assert!(site.command(&["resume", "DFW"]).0);
    site.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_well_and_what_is_to_be_done() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    let expires = IndexOptions::builder().expire_after(std::time::Duration::from_secs(60)).build();
    let index = IndexModel::builder().keys(doc! { "at": 1 }).options(expires).build();
    site.at("DFW").create_index(index).await.unwrap();
    let (done, text) = site.command(&["check"]);
    assert!(done, "{text}");
    for line in [
        "ok       configuration: 1 spokes",
        "ok       hub: a replica set of MongoDB 6.0",
        "ok       spoke DFW: its change stream can be read",
        "ok       spoke DFW: its metadata database can be written",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(
        text.lines().any(|line| line.starts_with("warning  spoke DFW") && line.contains("expires documents")),
        "{text}"
    );
    assert!(text.lines().any(|line| line.starts_with("warning  hub: its oplog goes back")), "{text}");
    site.reach(HUB, "mongodb://127.0.0.1:1/?replicaSet=rs&serverSelectionTimeoutMS=200");
    let (done, text) = site.command(&["check"]);
    assert!(!done && text.lines().any(|line| line.starts_with("error    hub: ")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_watched_is_read_when_it_changes() {
    let mut site = Site::shared(TRIANGLE).await;
    site.first_config = "reload_on_change = true".to_owned();
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": 1, "_pk": "HOU" }).await.unwrap();
    site.settle().await;
    site.watch("BOS", &["HOU"]);
    site.write_config();
    eventually("the zone is copied", async || site.zone("BOS", 0, "HOU").await.len() == 1).await;
    site.ready().await;
    site.assert_converged().await;
}
