//! Servers and wires that fail: after any failure every change arrives once, and the other spokes do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::{Client, Collection};
use nix::sys::signal::Signal;
use testbed::node::Options;
use testbed::program::Program;
use testbed::proxy::{Proxy, Wire};
use testbed::set::Set;
use tokio::task::JoinHandle;

use super::support::events::Events;
use super::support::site::{HUB, TRIANGLE};
use super::support::{LIMIT, Site, eventually};

/// An application that writes numbered documents one by one, and repeats unacknowledged writes.
struct Application {
    done: Arc<AtomicBool>,
    changes: Arc<AtomicI32>,
    task: JoinHandle<()>,
}

impl Application {
    fn start(collection: Collection<Document>, zone: &'static str) -> Self {
        let (done, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI32::new(0)));
        let (ended, counted) = (done.clone(), changes.clone());
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                let id = format!("{zone} {number:06}");
                let whole = doc! { "_id": &id, "_pk": zone, "n": number };
                while collection.replace_one(doc! { "_id": &id }, whole.clone()).upsert(true).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                number += 1;
                counted.store(number, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { done, changes, task }
    }

    fn changes(&self) -> i32 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Waits for this number of further changes.
    async fn go_on(&self, more: i32) {
        let until = self.changes() + more;
        eventually("the application goes on", async || self.changes() >= until).await;
    }

    async fn end(self) -> i32 {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.changes.load(Ordering::Relaxed)
    }
}

/// Checks that all sides are equal, and that the hub saw each change once: an insert, and never another event.
async fn assert_exactly_once(site: &Site, events: Option<&mut Events>, zone: &str, changes: i32) {
    site.assert_converged().await;
    assert_eq!(site.zone(HUB, 0, zone).await.len(), usize::try_from(changes).unwrap());
    let Some(events) = events else { return };
    let seen = events.so_far().await;
    assert_eq!(seen.len(), usize::try_from(changes).unwrap(), "change events at the hub: {:?}", seen.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_killed_restarted_and_stepped_down_and_every_change_arrives_once() {
    let mut site = Site::own(TRIANGLE, Options::default()).await;
    site.start().await;
    let application = Application::start(site.at("DFW"), "DFW");
    for name in [HUB, "HOU", "DFW"] {
        application.go_on(100).await;
        let node = site.nodes.get_mut(name).unwrap();
        node.kill().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.restart().await.unwrap();
        application.go_on(20).await;
        let step_down = doc! { "replSetStepDown": 2, "force": true };
        site.nodes[name].admin(step_down).await.unwrap();
    }
    application.go_on(100).await;
    let changes = application.end().await;
    site.ready().await;
    assert_exactly_once(&site, None, "DFW", changes).await;
    assert!(!site.log().contains("panicked"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_fail_in_every_way_and_every_change_arrives_once() {
    let mut site = Site::own(TRIANGLE, Options::default()).await;
    site.start().await;
    let mut events = Events::watch(site.at(HUB)).await;
    let application = Application::start(site.at("DFW"), "DFW");
    // NotWritablePrimary, NetworkTimeout, InterruptedDueToReplStateChange, ShutdownInProgress, ExceededTimeLimit,
    // CursorNotFound, WriteConflict, Interrupted, ReadConcernMajorityNotAvailableYet, NoSuchTransaction.
    const CODES: [i32; 10] = [10107, 89, 11602, 91, 262, 43, 112, 11601, 134, 251];
    const COMMANDS: [&str; 9] = [
        "insert",
        "update",
        "find",
        "aggregate",
        "getMore",
        "commitTransaction",
        "abortTransaction",
        "findAndModify",
        "ping",
    ];
    let fail = async |name: &str, data: Document| drop(site.nodes[name].fail(2, data).await.unwrap());
    // Every command fails twice with a closed connection, and then several commands with every error code.
    for command in COMMANDS {
        for name in [HUB, "DFW", "HOU"] {
            fail(name, doc! { "failCommands": [command], "closeConnection": true }).await;
        }
        application.go_on(15).await;
    }
    for code in CODES {
        for name in [HUB, "DFW", "HOU"] {
            fail(name, doc! { "failCommands": &COMMANDS[..6], "errorCode": code }).await;
        }
        application.go_on(15).await;
    }
    // The commit is answered with a write concern error, or with an unknown outcome.
    const UNKNOWN: [&str; 1] = ["commitTransaction"];
    for name in [HUB, "HOU"] {
        let concern = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
        fail(name, doc! { "failCommands": UNKNOWN, "writeConcernError": concern }).await;
        application.go_on(15).await;
        let labels = ["UnknownTransactionCommitResult"];
        fail(name, doc! { "failCommands": UNKNOWN, "errorCode": 50, "errorLabels": labels }).await;
        application.go_on(15).await;
    }
    for name in [HUB, "DFW", "HOU"] {
        site.nodes[name].admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
    }
    let changes = application.end().await;
    site.ready().await;
    assert_exactly_once(&site, Some(&mut events), "DFW", changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_spoke_holds_up_nobody_and_catches_up_on_a_stream_of_its_own() {
    let mut site = Site::own(&[("DFW", &[]), ("HOU", &["DFW"]), ("BOS", &["DFW"])], Options::default()).await;
    site.start().await;
    site.nodes["BOS"].freeze().unwrap();
    // More documents than BOS's queue and the batch in work hold.
    for start in (0..90_000).step_by(5_000) {
        let documents = (start..start + 5_000).map(|id| doc! { "_id": id, "_pk": "DFW" });
        site.at("DFW").insert_many(documents).await.unwrap();
    }
    eventually("HOU has all documents", async || site.at("HOU").estimated_document_count().await.unwrap() == 90_000)
        .await;
    eventually("BOS is detached", async || site.log().contains("does not keep up")).await;
    let begun = Instant::now();
    site.at("DFW").insert_one(doc! { "_id": "late", "_pk": "DFW" }).await.unwrap();
    eventually("HOU goes on", async || site.at("HOU").find_one(doc! { "_id": "late" }).await.unwrap().is_some()).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    site.nodes["BOS"].thaw().unwrap();
    site.ready().await;
    site.assert_converged().await;
    assert_eq!(site.status()["hub"]["open_streams"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_loses_its_majority_holds_up_nobody_and_goes_on_when_it_has_it_again() {
    let set = Set::start("DFW", &Options::default()).await.unwrap();
    let mut site = Site::own(&[("HOU", &["DFW"]), ("BOS", &[])], Options::default()).await;
    site.adopt("DFW", &set.uri()).await;
    site.add("DFW", &["HOU"]);
    site.start().await;
    let application = Application::start(site.at("DFW"), "DFW");
    application.go_on(100).await;
    set.lose_majority().await.unwrap();
    eventually("the primary has stepped down", async || !set.has_primary().await).await;
    // Both links of DFW wait: the downlink with changes by HOU and the hub, the uplink with changes by DFW.
    site.at("HOU").insert_one(doc! { "_id": "HOU", "_pk": "HOU" }).await.unwrap();
    site.at(HUB).insert_one(doc! { "_id": "DFW hub", "_pk": "DFW" }).await.unwrap();
    eventually("the others go on", async || {
        site.at(HUB).find_one(doc! { "_id": "HOU" }).await.unwrap().is_some()
            && site.at("HOU").find_one(doc! { "_id": "DFW hub" }).await.unwrap().is_some()
    })
    .await;
    set.regain_majority().unwrap();
    application.go_on(50).await;
    let changes = application.end().await;
    site.ready().await;
    assert_exactly_once(&site, None, "DFW", changes + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_is_cut_slow_or_swallows_everything_loses_nothing() {
    let mut site = Site::own(TRIANGLE, Options::default()).await;
    let proxies =
        [Proxy::to(site.nodes["DFW"].port()).await.unwrap(), Proxy::to(site.nodes[HUB].port()).await.unwrap()];
    site.reach("DFW", &proxies[0].uri());
    site.reach(HUB, &proxies[1].uri());
    site.start().await;
    let mut events = Events::watch(site.at(HUB)).await;
    let application = Application::start(site.at("DFW"), "DFW");
    application.go_on(50).await;
    for proxy in &proxies {
        for wire in [Wire::Cut, Wire::Slow(Duration::from_millis(100)), Wire::BlackHole] {
            proxy.set(wire);
            tokio::time::sleep(Duration::from_secs(3)).await;
            proxy.set(Wire::Open);
            application.go_on(30).await;
        }
    }
    let changes = application.end().await;
    site.ready().await;
    assert_exactly_once(&site, Some(&mut events), "DFW", changes).await;
}

/// The largest number of events that a change stream at this server requests for a reply.
async fn most_events_of_a_reply(client: &Client) -> i64 {
    let pipeline = [
        doc! { "$currentOp": { "allUsers": true, "idleCursors": true } },
        doc! { "$match": { "cursor.originatingCommand.pipeline.0.$changeStream": { "$exists": true } } },
    ];
    let cursors = client.database("admin").aggregate(pipeline).await.unwrap();
    let cursors: Vec<Document> = cursors.try_collect().await.unwrap();
    let sizes = cursors.iter().filter_map(|cursor| {
        let command = cursor.get_document("cursor").ok()?.get_document("originatingCommand").ok()?;
        match command.get_document("cursor").ok()?.get("batchSize")? {
            Bson::Int32(size) => Some(i64::from(*size)),
            size => size.as_i64(),
        }
    });
    sizes.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_grow_where_the_wire_becomes_long_while_the_program_runs() {
    let mut site = Site::own(TRIANGLE, Options::default()).await;
    let proxy = Proxy::to(site.nodes["DFW"].port()).await.unwrap();
    site.reach("DFW", &format!("{}&heartbeatFrequencyMS=500", proxy.uri()));
    site.start().await;
    let client = site.client("DFW").clone();
    let near = most_events_of_a_reply(&client).await;
    assert!(near > 0, "a change stream is open");
    proxy.set(Wire::Slow(Duration::from_millis(25)));
    let (collection, mut number) = (site.at("DFW"), 0);
    eventually("replies are larger", async || {
        let documents = (number..number + 10_000).map(|number| doc! { "_id": number, "_pk": "DFW" });
        collection.insert_many(documents).await.unwrap();
        number += 10_000;
        most_events_of_a_reply(&client).await >= 2 * near
    })
    .await;
    site.settle().await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_replies_over_a_long_and_narrow_wire_stay_within_their_time_limits() {
    let mut site = Site::own(&[("DFW", &["HOU"]), ("HOU", &[])], Options::default()).await;
    let proxy = Proxy::to(site.nodes["DFW"].port()).await.unwrap();
    site.reach("DFW", &proxy.uri());
    site.start().await;
    site.settle().await;
    site.stop().await;
    // Enough documents that a command or a reply of the largest size would exceed its time limit.
    for (name, zone) in [("DFW", "DFW"), ("HOU", "HOU")] {
        let text = "x".repeat(900);
        let documents = (0..16_000).map(|id| doc! { "_id": format!("{zone} {id}"), "_pk": zone, "text": &text });
        site.at(name).insert_many(documents).await.unwrap();
    }
    proxy.set(Wire::Narrow(Duration::from_millis(25), 320_000));
    site.start().await;
    site.settle().await;
    site.assert_converged().await;
    assert!(!site.log().contains("no answer within"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_configuration_share_the_spokes_and_apply_nothing_twice() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let mut events = Events::watch(site.at(HUB)).await;
    let application = Application::start(site.at("DFW"), "DFW");
    let mut second = site.member("second");
    application.go_on(300).await;
    second.ready(LIMIT).await.unwrap();
    let held = |program: &Program| {
        let status = program.status().unwrap();
        let spokes = status["spokes"].as_array().unwrap().iter();
        spokes.filter(|spoke| spoke["state"] == "streaming").count()
    };
    eventually("each process runs its share", async || {
        let counts = [held(site.program.as_ref().unwrap()), held(&second)];
        counts.iter().sum::<usize>() == 3 && counts.iter().all(|count| (1..=2).contains(count))
    })
    .await;
    application.go_on(300).await;
    drop(second);
    eventually("the other process runs all spokes", async || held(site.program.as_ref().unwrap()) == 3).await;
    let changes = application.end().await;
    site.ready().await;
    assert_exactly_once(&site, Some(&mut events), "DFW", changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_halt_one_spoke_until_they_are_right_and_no_password_is_shown() {
    let mut site = Site::own(TRIANGLE, Options { users: true, ..Options::default() }).await;
    let least_privileges = async |name: &str| {
        let admin = site.client(name).database("admin");
        let collection = site.at(name).namespace();
        let role = doc! { "createRole": "spokesync", "roles": [], "privileges": [
            { "resource": { "db": &collection.db, "collection": &collection.coll },
              "actions": ["find", "changeStream", "insert", "update", "remove", "listIndexes"] },
            { "resource": { "db": &collection.db, "collection": "" }, "actions": ["listCollections"] },
            { "resource": { "db": site.metadata(), "collection": "" },
              "actions": ["find", "insert", "update", "remove", "createCollection"] },
            { "resource": { "cluster": true }, "actions": ["serverStatus"] },
        ] };
        admin.run_command(role).await.unwrap();
        let user = doc! { "createUser": "sync", "pwd": "hunter2", "roles": ["spokesync"] };
        admin.run_command(user).await.unwrap();
    };
    for name in [HUB, "DFW", "HOU"] {
        least_privileges(name).await;
    }
    for name in [HUB, "DFW", "HOU", "BOS"] {
        let uri = site.nodes[name].uri_of("sync:hunter2@");
        site.reach(name, &format!("{uri}&authSource=admin"));
    }
    // BOS has no such user yet.
    site.launch();
    let halted = async || {
        let Ok(status) = site.program.as_ref().unwrap().status() else { return false };
        let spokes = status["spokes"].as_array().unwrap();
        spokes.iter().any(|spoke| spoke["zone"] == "BOS" && spoke["state"] == "halted")
    };
    eventually("BOS is halted", halted).await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    eventually("the others go on", async || site.at("HOU").find_one(doc! { "_id": 1 }).await.unwrap().is_some()).await;
    let status = site.spoke_status("BOS").to_string();
    assert!(status.to_lowercase().contains("auth"), "{status}");
    let user = doc! { "createUser": "sync", "pwd": "hunter2", "roles": ["root"] };
    site.client("BOS").database("admin").run_command(user).await.unwrap();
    // A reload of the unchanged configuration is enough to try again.
    site.program.as_ref().unwrap().process().signal(Signal::SIGHUP).unwrap();
    site.ready().await;
    site.assert_converged().await;
    let everything = site.log() + &site.status().to_string() + &site.command(&["check"]).1;
    assert!(!everything.contains("hunter2"), "{everything}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_a_frozen_server_ends_in_time_and_names_the_unfinished_spoke() {
    let mut site = Site::own(TRIANGLE, Options::default()).await;
    site.start().await;
    let application = Application::start(site.at("DFW"), "DFW");
    application.go_on(50).await;
    site.nodes["HOU"].freeze().unwrap();
    application.go_on(50).await;
    let begun = Instant::now();
    let exit = site.program.take().unwrap().stop(Signal::SIGTERM, Duration::from_secs(12)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    if exit != Some(0) {
        assert_eq!(exit, Some(1));
        assert!(site.log().contains("left=\"HOU\""), "{}", site.log());
    }
    site.nodes["HOU"].thaw().unwrap();
    let changes = application.end().await;
    site.start().await;
    assert_exactly_once(&site, None, "DFW", changes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_spokes_with_old_checkpoints_open_few_streams_at_the_hub() {
    // One server plays all spokes, each with a separate zone.
    let zones: Vec<String> = (0..100).map(|number| format!("Z{number:02}")).collect();
    let topology: Vec<(&str, &[&str])> = zones.iter().map(|zone| (zone.as_str(), [].as_slice())).collect();
    let mut site = Site::crowd(&topology).await;
    site.start().await;
    site.stop().await;
    // The checkpoints are two minutes apart.
    let checkpoints = site.own_collection(&zones[0], "checkpoints");
    for (number, zone) in (0_u32..).zip(&zones) {
        let id = format!("downlink:{zone}");
        let saved = checkpoints.find_one(doc! { "_id": &id }).await.unwrap().unwrap();
        let time = saved.get_timestamp("cluster_time").unwrap();
        let earlier = format!("82{:08X}{:08X}2B0229296E04", time.time - 120 * number, time.increment);
        let set = doc! { "$set": { "token": { "_data": earlier } } };
        checkpoints.update_one(doc! { "_id": id }, set).await.unwrap();
    }
    site.launch();
    let mut most = 0;
    eventually("all are ready", async || {
        let Ok(status) = site.program.as_ref().unwrap().status() else { return false };
        most = most.max(status["hub"]["open_streams"].as_u64().unwrap());
        site.program.as_ref().unwrap().get("/readyz").is_ok_and(|(code, _)| code == 200)
    })
    .await;
    assert!((2..=5).contains(&most), "{most} streams");
    assert_eq!(site.status()["hub"]["open_streams"], 1);
}
