//! The program as a process: the reference container's environment, the HTTP interface, and the stop.

use std::process::Command;
use std::time::{Duration, Instant};

use bson::doc;
use nix::sys::signal::Signal;
use testbed::process::Process;

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_containers_environment_runs_one_spoke() {
    // The reference container fixes the names and the port. No other test may use them.
    let site = Site::own(&[("DFW", &[])], testbed::node::Options::default()).await;
    let folder = tempfile::TempDir::new().unwrap();
    let output = folder.path().join("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
    command
        .arg("run")
        .current_dir(folder.path())
        .env("ZONENAME", "DFW")
        .env("WATCHZONES", "HOU,BOS")
        .env("CONSTREDGE", site.uri("DFW"))
        .env("CONSTRFAR", site.uri(HUB));
    let program = Process::start(&command, &output).unwrap();
    eventually("the program prints that it is ready", async || {
        std::fs::read_to_string(&output).unwrap().contains("Ready...")
    })
    .await;
    let lines = std::fs::read_to_string(&output).unwrap();
    let ready: Vec<&str> = lines.lines().filter(|line| line.starts_with("Ready")).collect();
    assert_eq!(ready, ["Ready Far", "Ready Edge", "Ready..."]);
    for name in [HUB, "DFW"] {
        let collections = site.client(name).database("_syncmetadata").list_collection_names().await.unwrap();
        for expected in ["checkpoints", "sessions", "dead_letters"] {
            assert!(collections.iter().any(|collection| collection == expected), "{name}: {collections:?}");
        }
    }
    let messages = |name: &str| site.client(name).database("messages").collection::<bson::Document>("messages");
    messages("DFW").insert_one(doc! { "_id": 1 }).await.unwrap();
    messages(HUB).insert_one(doc! { "_id": 2, "_pk": "HOU" }).await.unwrap();
    for (name, filter) in [(HUB, doc! { "_id": 1, "_pk": "DFW" }), ("DFW", doc! { "_id": 2 })] {
        eventually("the document arrives", async || messages(name).find_one(filter.clone()).await.unwrap().is_some())
            .await;
    }
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_status_have_the_agreed_form() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    let program = site.program.as_ref().unwrap();
    assert_eq!(program.get("/healthz").unwrap().0, 200);
    assert_eq!(program.get("/readyz").unwrap().0, 200);
    assert_eq!(program.get("/nowhere").unwrap().0, 404);
    let status = program.status().unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_seconds"].as_f64().unwrap() > 0.0);
    let hub = &status["hub"];
    assert_eq!((hub["state"].as_str().unwrap(), hub["open_streams"].as_u64().unwrap()), ("streaming", 1));
    assert!(hub["events_total"].as_u64().unwrap() >= 1);
    assert!(hub["lag_seconds"].is_number() && hub["restarts"] == 0 && hub["last_error"].is_null());
    // Spokes in the order of their names, with both links and the queue.
    let zones: Vec<&str> =
        status["spokes"].as_array().unwrap().iter().map(|spoke| spoke["zone"].as_str().unwrap()).collect();
    assert_eq!(zones, ["BOS", "DFW", "HOU"]);
    let spoke = &status["spokes"][1];
    assert_eq!((spoke["watch"][0].as_str(), spoke["state"].as_str()), (Some("HOU"), Some("streaming")));
    assert_eq!(spoke["dead_letters"], 0);
    for link in ["uplink", "downlink"] {
        let link = &spoke[link];
        assert_eq!(link["state"], "streaming");
        assert!(link["applied_total"].as_u64().unwrap() >= 1);
        assert!(link["lag_seconds"].as_f64().unwrap() < 5.0);
        assert!(link["checkpoint"]["cluster_time"].as_str().unwrap().contains('.'));
        assert!(link["checkpoint"]["age_seconds"].is_number());
        assert!(link["time_to_loss_seconds"].is_number(), "{link}");
        assert!(link["restarts"] == 0 && link["last_error"].is_null() && link["last_error_at"].is_null());
        assert!(link["foreign_total"] == 0 && link["comparing"] == false && link["copying"].is_null());
    }
    let queue = &spoke["queue"];
    assert!(queue["events"].is_u64() && queue["events_capacity"].as_u64().unwrap() > 0, "{queue}");
    assert!(queue["bytes"].is_u64() && queue["bytes_capacity"].as_u64().unwrap() > 0, "{queue}");
    assert!(status["verification"].is_null() && status["configuration_error"].is_null());
    // History and metrics.
    let history = program.get("/api/v1/history").unwrap().1;
    assert_eq!(history["interval_seconds"], 5);
    eventually("the history has two entries", async || {
        let history = program.get("/api/v1/history").unwrap().1;
        let rates = history["spokes"]["DFW"]["uplink"]["rate"].as_array().unwrap();
        rates.len() >= 2 && rates.len() == history["hub"]["lag"].as_array().unwrap().len()
    })
    .await;
    let (code, metrics) = program.get("/metrics").unwrap();
    assert_eq!(code, 200);
    for line in ["spokesync_link_changes_total{zone=\"DFW\",link=\"uplink\"} 1", "spokesync_hub_streaming 1.0", "# EOF"]
    {
        assert!(metrics.as_str().unwrap().contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_on_all_but_health_and_readiness() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.http_config = "token = \"open sesame and all\"".to_owned();
    site.start().await;
    let program = site.program.as_ref().unwrap();
    assert_eq!(program.get("/healthz").unwrap().0, 200);
    assert_eq!(program.get("/api/v1/status").unwrap().0, 401);
    assert_eq!(program.get_with_token("/api/v1/status", "open sesame and all").unwrap().0, 200);
    assert_eq!(program.get_with_token("/api/v1/status", "open Sesame and all").unwrap().0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_program_cleanly_under_load_and_no_change_is_lost() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let collection = site.at("DFW");
    let writer = tokio::spawn(async move {
        for id in 0..3_000 {
            collection.insert_one(doc! { "_id": id, "_pk": "DFW" }).await.unwrap();
        }
    });
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        let exit = site.program.take().unwrap().stop(signal, Duration::from_secs(10)).await.unwrap();
        assert_eq!(exit, Some(0), "{}", site.log());
        assert!(begun.elapsed() < Duration::from_secs(10));
        site.start().await;
    }
    writer.await.unwrap();
    site.assert_converged().await;
    assert_eq!(site.zone("HOU", 0, "DFW").await.len(), 3_000);
    assert!(!site.log().contains("panicked"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_is_down_at_the_start_keeps_nobody_else_from_starting() {
    let mut site = Site::own(TRIANGLE, testbed::node::Options::default()).await;
    site.nodes.get_mut("BOS").unwrap().kill().unwrap();
    site.launch();
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    eventually("DFW's document is at HOU", async || {
        site.at("HOU").find_one(doc! { "_id": 1 }).await.unwrap().is_some()
    })
    .await;
    eventually("only BOS is missing", async || {
        let (code, body) = site.program.as_ref().unwrap().get("/readyz").unwrap();
        let missing = body["missing"].to_string();
        code == 503 && missing.contains("BOS") && !missing.contains("DFW")
    })
    .await;
    site.nodes.get_mut("BOS").unwrap().restart().await.unwrap();
    site.ready().await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_ends_the_program_at_once_with_the_reason() {
    let site = Site::shared(TRIANGLE).await;
    let taken = std::net::TcpListener::bind(site.address()).unwrap();
    let (code, _) = site.command_code(&["run"]);
    assert_eq!(code, 1);
    let (_, output) = site.command(&["run"]);
    assert!(output.contains("http.listen: cannot listen on") && !output.contains("panicked"), "{output}");
    drop(taken);
}
