//! The dashboard, in a real browser.

use bson::doc;
use fantoccini::key::Key;
use serde_json::json;

use super::support::browser::Browser;
use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn hub_and_spokes_are_shown_and_a_spoke_is_paused_and_resumed_by_keyboard() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    // The page shows the hub and every spoke.
    let browser = Browser::start(1_280, 900).await;
    browser.page.goto(&format!("http://{}/", site.address())).await.unwrap();
    browser.shows("#ready", "all 3 spokes stream both ways").await;
    for zone in ["DFW", "HOU", "BOS"] {
        browser.shows(&format!("#spokes [data-zone='{zone}']"), "streaming").await;
        browser.shows(&format!("#wheel [data-zone='{zone}']"), zone).await;
    }
    // The keyboard alone selects the spoke, presses the pause button, and confirms.
    let focus = "document.querySelector(arguments[0]).focus()";
    browser.run(focus, vec!["#spokes [data-zone='HOU'] a, #spokes [data-zone='HOU'] button".into()]).await;
    browser.press(&Key::Enter.to_string()).await;
    browser.shows("#details [data-link='uplink'] [data-fact='foreign writes refused']", "1").await;
    browser.run(focus, vec!["#details [data-action='pause']".into()]).await;
    browser.press(&Key::Enter.to_string()).await;
    browser.shows("#confirm[open]", "HOU").await;
    assert_eq!(site.spoke_status("HOU")["state"], "streaming", "the dashboard asks for confirmation first");
    browser.run(focus, vec!["#confirm [data-answer='yes']".into()]).await;
    browser.press(&Key::Enter.to_string()).await;
    eventually("HOU is paused", async || site.spoke_status("HOU")["state"] == "paused").await;
    browser.shows("#spokes [data-zone='HOU']", "paused").await;
    browser.click("#details [data-action='resume']").await;
    browser.click("#confirm [data-answer='yes']").await;
    browser.shows("#spokes [data-zone='HOU']", "streaming").await;
    browser.press(&Key::Escape.to_string()).await;
    browser.shows("#ready", "all 3 spokes stream both ways").await;
    assert_eq!(browser.run("return document.querySelector('#details').open", vec![]).await, false);

    // A link opens an actor's log, which follows new lines.
    browser.page.goto(&format!("http://{}/#log=HOU/spoke", site.address())).await.unwrap();
    browser.shows("#log", "told by an operator").await;
    assert!(!browser.text("#log").await.contains("DFW"), "{}", browser.text("#log").await);
    site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/resync").unwrap();
    browser.shows("#log", "Resync").await;

    // All resources come from the program itself, and the page is no wider than a phone.
    let from_here = "return performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))";
    assert_eq!(browser.run(from_here, vec![]).await, true);
    browser.page.set_window_size(390, 844).await.unwrap();
    browser.page.goto(&format!("http://{}/#", site.address())).await.unwrap();
    browser.shows("#spokes [data-zone='BOS']", "streaming").await;
    let fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.run(fits, vec![]).await, true);

    // Without an answer the page says that its figures are stale.
    site.kill();
    browser.shows("#stale", "no answer").await;
    site.start().await;
    eventually("the dashboard is no longer stale", async || {
        browser.run("return document.querySelector('#stale').hidden", vec![]).await == true
    })
    .await;
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_metrics_and_dashboard_agree_on_paused_and_failing_spokes_and_a_frozen_hub() {
    let mut site = Site::own(TRIANGLE, testbed::node::Options::default()).await;
    // A replica set whose name differs from the configured name can never be used.
    let wrong = site.uri("BOS").replace("replicaSet=rs", "replicaSet=other&serverSelectionTimeoutMS=300");
    site.reach("BOS", &wrong);
    site.reach("HOU", "mongodb://user:hunter2@127.0.0.1:1/?authMechanism=SCRAM-SHA-256&serverSelectionTimeoutMS=300");
    site.launch();
    let browser = Browser::start(1_280, 900).await;
    browser.page.goto(&format!("http://{}/", site.address())).await.unwrap();
    let program = site.program.as_ref().unwrap();
    eventually("DFW streams", async || site.spoke_status("DFW")["state"] == "streaming").await;
    program.post("/api/v1/spokes/DFW/pause").unwrap();
    let state = |zone: &str| site.spoke_status(zone)["state"].clone();
    eventually("DFW is paused and HOU fails", async || state("DFW") == "paused" && state("HOU") == "backoff").await;
    site.nodes[HUB].freeze().unwrap();
    let metrics = || program.get("/metrics").unwrap().1.as_str().unwrap().to_owned();
    eventually("the hub's lag grows", async || {
        site.status()["hub"]["lag_seconds"].as_f64().is_some_and(|lag| lag > 4.0)
    })
    .await;
    // Readiness names the failing spoke, not the paused one. Metrics and the page show the same states.
    let (code, missing) = program.get("/readyz").unwrap();
    assert_eq!(code, 503);
    let missing = missing["missing"].to_string();
    assert!(missing.contains("HOU uplink: ") && !missing.contains("DFW"), "{missing}");
    for line in [
        "spokesync_link_paused{zone=\"DFW\",link=\"uplink\"} 1.0",
        "spokesync_link_streaming{zone=\"DFW\",link=\"downlink\"} 0.0",
        "spokesync_link_streaming{zone=\"HOU\",link=\"uplink\"} 0.0",
    ] {
        assert!(metrics().contains(line), "{line}\n{}", metrics());
    }
    browser.shows("#spokes [data-zone='DFW']", "paused").await;
    browser.shows("#ready", "not streaming").await;
    browser.shows("#hub", "lag").await;
    // A spoke that needs a person comes first.
    let first = browser.run("return document.querySelector('#spokes tbody [data-zone]').dataset.zone", vec![]).await;
    assert_ne!(first, json!("DFW"));
    let shown = metrics() + &site.status().to_string() + &browser.text("body").await + &site.log();
    assert!(!shown.contains("hunter2"), "{shown}");
    site.nodes[HUB].thaw().unwrap();
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_brings_the_token_as_a_password() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.http_config = "token = \"open-sesame-and-all\"".to_owned();
    site.start().await;
    for path in ["/", "/page/main.js", "/metrics", "/api/v1/history", "/nowhere"] {
        assert_eq!(site.program.as_ref().unwrap().get(path).unwrap().0, 401, "{path}");
    }
    let browser = Browser::start(800, 600).await;
    browser.page.goto(&format!("http://operator:open-sesame-and-all@{}/", site.address())).await.unwrap();
    browser.shows("#ready", "the one spoke streams both ways").await;
    browser.end().await;
}
