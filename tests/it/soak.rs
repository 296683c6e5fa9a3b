//! A seeded random sequence of writes, faults, reloads and kills. At the end, the test proves all promises.
//!
//! The sequence runs for 40 seconds with the other tests, and for as long as requested by `make soak MINUTES=…`. The
//! test prints its seed, and `SOAK_SEED` sets the seed: the order of faults is then the same, though not their moments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use mongodb::Collection;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use testbed::node::Options;
use tokio::task::JoinHandle;

use super::support::events::Events;
use super::support::site::{HUB, Topology};
use super::support::{LIMIT, Site, eventually};

const SPOKES: Topology<'static> =
    &[("DFW", &["HOU", "yard"]), ("HOU", &["DFW"]), ("BOS", &["DFW", "HOU"]), ("NYC", &[])];

/// Documents that each application changes repeatedly.
const DOCUMENTS: i32 = 300;

/// Duration with the other tests.
const BRIEF: Duration = Duration::from_secs(40);

/// A running application, which returns its acknowledged writes.
struct Application {
    done: Arc<AtomicBool>,
    task: JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    /// Documents that no other application writes, with the value that each must have at the end, or `None` for a
    /// deleted document.
    own: BTreeMap<String, Option<i32>>,
    changes: u64,
}

impl Application {
    /// Writes its own documents in this zone, and edits documents that other applications edit, too.
    fn start(collection: Collection<Document>, name: &'static str, zone: &'static str, seed: u64) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let task = tokio::spawn(async move {
            let (mut random, mut written) = (StdRng::seed_from_u64(seed), Written::default());
            while !ended.load(Ordering::Relaxed) {
                let number = random.random_range(0..DOCUMENTS);
                let value: i32 = random.random();
                if random.random_bool(0.2) {
                    // The outcome may stay unknown, because another application may make the same edit.
                    let update = doc! { "$set": { format!("by {name}"): value, "shared": value } };
                    let filter = doc! { "_id": format!("{zone} shared {}", number % 20), "_pk": zone };
                    drop(collection.update_one(filter, update).upsert(name == HUB).await);
                } else {
                    let id = format!("{zone} {name} {number}");
                    let value = (!random.random_bool(0.2)).then_some(value);
                    let style = random.random_range(0..3);
                    while !put(&collection, &id, zone, value, style).await {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    written.own.insert(id, value);
                }
                written.changes += 1;
                tokio::time::sleep(Duration::from_millis(random.random_range(1..20))).await;
            }
            written
        });
        Self { done, task }
    }
}

/// Writes a value. The write can be repeated if the answer was lost. Returns `false` if the write may not have
/// happened.
async fn put(collection: &Collection<Document>, id: &str, zone: &str, value: Option<i32>, style: i32) -> bool {
    let filter = doc! { "_id": id };
    let Some(value) = value else { return collection.delete_one(filter).await.is_ok() };
    match style {
        0 => {
            let whole = doc! { "_id": id, "_pk": zone, "n": value, "nested": { "n": value } };
            collection.replace_one(filter, whole).upsert(true).await.is_ok()
        }
        1 => {
            let update = doc! { "$set": { "_pk": zone, "n": value } };
            collection.update_one(filter, update).upsert(true).await.is_ok()
        }
        _ => {
            let update = doc! { "$set": { "_pk": zone, "n": value, "nested.n": value } };
            collection.update_one(filter, update).upsert(true).await.is_ok()
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillProgram,
    StopProgram,
    KillServer,
    FreezeServer,
    StepDown,
    FailCommands,
    LoseHistory,
    Watch,
    Restart,
    PauseAndResume,
    Resync,
}

const FAULTS: [Fault; 11] = [
    Fault::KillProgram,
    Fault::StopProgram,
    Fault::KillServer,
    Fault::FreezeServer,
    Fault::StepDown,
    Fault::FailCommands,
    Fault::LoseHistory,
    Fault::Watch,
    Fault::Restart,
    Fault::PauseAndResume,
    Fault::Resync,
];

async fn make(fault: Fault, site: &mut Site, random: &mut StdRng) {
    let names = [HUB, "DFW", "HOU", "BOS", "NYC"];
    let name = *names.choose(random).unwrap();
    let zone = *names[1..].choose(random).unwrap();
    let moment = Duration::from_millis(random.random_range(50..3_000));
    // The answer does not matter, because other parts may be broken at the moment.
    let post = |site: &Site, action: &str| {
        drop(site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/{action}")))
    };
    match fault {
        Fault::KillProgram => {
            site.kill();
            tokio::time::sleep(moment / 4).await;
            site.launch();
        }
        Fault::StopProgram => {
            let exit = site.program.take().unwrap().stop(Signal::SIGTERM, Duration::from_secs(11)).await.unwrap();
            assert!(matches!(exit, Some(0 | 1)), "{exit:?}");
            site.launch();
        }
        Fault::KillServer => {
            let node = site.nodes.get_mut(name).unwrap();
            node.kill().unwrap();
            tokio::time::sleep(moment).await;
            node.restart().await.unwrap();
        }
        Fault::FreezeServer => {
            site.nodes[name].freeze().unwrap();
            tokio::time::sleep(moment * 3).await;
            site.nodes[name].thaw().unwrap();
        }
        Fault::StepDown => drop(site.nodes[name].admin(doc! { "replSetStepDown": 1, "force": true }).await),
        Fault::FailCommands => {
            let code = *[10107, 112, 43, 91, 262, 11602].choose(random).unwrap();
            let commands = ["insert", "update", "delete", "find", "aggregate", "getMore", "commitTransaction"];
            let mut data = doc! { "failCommands": commands.as_slice() };
            if random.random_bool(0.5) {
                data.insert("closeConnection", true);
            } else {
                data.insert("errorCode", code);
            }
            drop(site.nodes[name].fail(random.random_range(1..8), data).await);
        }
        Fault::LoseHistory => {
            drop(site.nodes[name].fail(1, doc! { "failCommands": ["getMore"], "errorCode": 136 }).await);
        }
        Fault::Watch => {
            let others: Vec<&str> = names[1..].iter().copied().filter(|other| *other != zone).collect();
            let number = random.random_range(0..=others.len());
            let watch: Vec<&str> = others.choose_multiple(random, number).copied().collect();
            site.watch(zone, &watch);
            site.on_unwatch(zone, if random.random_bool(0.5) { "keep" } else { "purge" });
            site.write_config();
            site.program.as_ref().unwrap().process().signal(Signal::SIGHUP).unwrap();
        }
        Fault::Restart => post(site, "restart"),
        Fault::PauseAndResume => {
            post(site, "pause");
            tokio::time::sleep(moment / 2).await;
            post(site, "resume");
        }
        Fault::Resync => post(site, "resync"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_all_promises_hold() {
    let length = std::env::var("SOAK_MINUTES").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let length = length.map_or(BRIEF, |minutes| Duration::from_secs(60 * minutes));
    let seed = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SOAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + length;
    let mut site = Site::own(SPOKES, Options::default()).await;
    site.start().await;
    let mut rounds = 0;
    let mut all: BTreeMap<String, (&'static str, Option<i32>)> = BTreeMap::new();
    while Instant::now() < end || rounds == 0 {
        rounds += 1;
        let mut applications = Vec::new();
        for zone in ["DFW", "HOU", "BOS", "NYC"] {
            applications.push((zone, Application::start(site.at(zone), zone, zone, random.random())));
        }
        for zone in ["DFW", "HOU", "yard"] {
            applications.push((zone, Application::start(site.at(HUB), HUB, zone, random.random())));
        }
        // Long runs prove the promises every three minutes.
        let until = (Instant::now() + Duration::from_secs(180)).min(end);
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
            let fault = *FAULTS.choose(&mut random).unwrap();
            println!("{:>6} s {fault:?}", end.saturating_duration_since(Instant::now()).as_secs());
            make(fault, &mut site, &mut random).await;
        }
        // Faults and applications end before the proof.
        for node in site.nodes.values() {
            node.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
        }
        let mut changes = 0;
        for (zone, application) in applications {
            application.done.store(true, Ordering::Relaxed);
            let written = tokio::time::timeout(LIMIT, application.task).await.expect("the application ends").unwrap();
            changes += written.changes;
            all.extend(written.own.into_iter().map(|(id, value)| (id, (zone, value))));
        }
        prove(&mut site, &all).await;
        println!("round {rounds}: {changes} changes, all promises hold");
    }
    println!("SOAK_SEED={seed}: all promises hold after {rounds} rounds");
}

/// Proves the promises while no application writes.
async fn prove(site: &mut Site, all: &BTreeMap<String, (&'static str, Option<i32>)>) {
    // A restart makes halted links try again.
    for zone in ["DFW", "HOU", "BOS", "NYC"] {
        site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/restart")).unwrap();
    }
    site.ready().await;
    // Convergence, byte for byte.
    site.assert_converged().await;
    // Nothing is lost, nothing is invented, and no zone's document is changed by another zone.
    for (id, (zone, value)) in all {
        let found = site.at(HUB).find_one(doc! { "_id": id }).await.unwrap();
        // If both links of a spoke have lost their place, data wins over deletion.
        if value.is_none() && site.log().contains("data wins over deletion") {
            continue;
        }
        let found = found.as_ref().map(|document| (document.get_str("_pk").unwrap(), document.get("n").cloned()));
        assert_eq!(found, value.map(|value| (*zone, Some(Bson::Int32(value)))), "{id}\n{}", site.log());
    }
    let hub = site.at(HUB).count_documents(doc! {}).await.unwrap();
    let (own, shared) = (all.values().filter(|(_, value)| value.is_some()).count() as u64, 3 * 20);
    assert!((own..=own + shared).contains(&hub), "{hub} documents at the hub, {own} of them known");
    for name in [HUB, "DFW", "HOU", "BOS", "NYC"] {
        let letters = site.own_collection(name, "dead_letters").count_documents(doc! {}).await.unwrap();
        assert_eq!(letters, 0, "dead letters at {name}");
    }
    // Without writes, the streams are quiet.
    for name in [HUB, "DFW", "HOU", "BOS", "NYC"] {
        let mut events = Events::watch(site.at(name)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(events.so_far().await.len(), 0, "{name} is not quiet");
    }
    // Streams and memory are bounded.
    eventually("one change stream is left at the hub", async || site.status()["hub"]["open_streams"] == 1).await;
    let peak = site.memory("VmHWM");
    assert!(peak < 400_000, "{peak} kB");
    assert!(!site.log().contains("panicked"), "{}", site.log());
}
