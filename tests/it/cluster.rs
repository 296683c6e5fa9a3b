//! Several processes share the spokes, and take over from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::Collection;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use testbed::program::Program;
use testbed::proxy::{Proxy, Wire};
use tokio::task::JoinHandle;

use super::support::events::Events;
use super::support::site::{HUB, TRIANGLE, Topology};
use super::support::{LIMIT, Site, eventually};

/// Nine spokes, each of which watches the next.
const NINE: Topology<'static> = &[
    ("A", &["B"]),
    ("B", &["C"]),
    ("C", &["D"]),
    ("D", &["E"]),
    ("E", &["F"]),
    ("F", &["G"]),
    ("G", &["H"]),
    ("H", &["I"]),
    ("I", &["A"]),
];

/// A short lease, so that takeovers come soon.
const LEASE: &str = "[cluster]\nlease_seconds = 4";

/// The zones that the process runs, by its own word.
fn held(program: &Program) -> BTreeSet<String> {
    let Ok(status) = program.status() else { return BTreeSet::new() };
    let spokes = status["spokes"].as_array().unwrap().iter();
    let own = spokes.filter(|spoke| spoke["state"] != "standby" && spoke["state"] != "connecting");
    own.map(|spoke| spoke["zone"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the processes run all of the site's spokes, each spoke once, and every process its share.
async fn shared_among(site: &Site, programs: &[&Program]) -> Vec<BTreeSet<String>> {
    let all = site.topology().len();
    let (least, most) = (all / programs.len(), all.div_ceil(programs.len()));
    let mut shares = Vec::new();
    eventually("each process runs its share", async || {
        shares = programs.iter().map(|program| held(program)).collect();
        let is_share = |share: &BTreeSet<String>| (least..=most).contains(&share.len());
        let zones: BTreeSet<&String> = shares.iter().flatten().collect();
        let is_ready = programs.iter().all(|program| program.get("/readyz").is_ok_and(|(code, _)| code == 200));
        shares.iter().all(is_share)
            && zones.len() == all
            && shares.iter().map(BTreeSet::len).sum::<usize>() == all
            && is_ready
    })
    .await;
    shares
}

/// Writes a document in every zone at its spoke, and waits until each is at the hub.
async fn everything_streams(site: &Site, id: &str) {
    for (zone, _) in site.topology() {
        site.at(zone).insert_one(doc! { "_id": format!("{zone} {id}"), "_pk": zone }).await.unwrap();
    }
    eventually(&format!("{id} of every zone is at the hub"), async || {
        let ids: Vec<String> = site.topology().iter().map(|(zone, _)| format!("{zone} {id}")).collect();
        site.at(HUB).count_documents(doc! { "_id": { "$in": ids } }).await.unwrap() == site.topology().len() as u64
    })
    .await;
}

fn members(status: &Value) -> usize {
    status["cluster"]["members"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_runs_its_share_and_only_the_surplus_moves() {
    let mut site = Site::crowd(NINE).await;
    site.start().await;
    let first = site.program.take().unwrap();
    let second = site.member("second");
    let before = shared_among(&site, &[&first, &second]).await;
    let third = site.member("third");
    let after = shared_among(&site, &[&first, &second, &third]).await;
    for (before, after) in before.iter().zip(&after) {
        assert!(after.is_subset(before), "no spoke wanders between two processes that have enough");
    }
    everything_streams(&site, "shared").await;
    // Every member knows the whole cluster.
    for program in [&first, &second, &third] {
        let status = program.status().unwrap();
        assert_eq!(members(&status), 3, "{status:#}");
        let metrics = program.get("/metrics").unwrap().1.to_string();
        for metric in
            ["spokesync_cluster_members 3", "spokesync_cluster_spokes_held 3", "spokesync_cluster_spokes_configured 9"]
        {
            assert!(metrics.contains(metric), "{metric}: {metrics}");
        }
        eventually("what the others run is shown", async || {
            let status = program.status().unwrap();
            let spokes = status["spokes"].as_array().unwrap();
            let elsewhere = spokes.iter().filter(|spoke| spoke["elsewhere"]["state"] == "streaming").count();
            elsewhere == 6
        })
        .await;
    }
}

/// An application that inserts numbered documents in every zone, each at the zone's spoke.
struct Application {
    done: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Application {
    fn start(site: &Site) -> Self {
        let spokes: Vec<(String, Collection<Document>)> =
            site.topology().iter().map(|(zone, _)| (zone.clone(), site.at(zone))).collect();
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                for (zone, spoke) in &spokes {
                    let whole =
                        doc! { "_id": format!("{zone} {number:06}"), "_pk": zone, "n": i64::try_from(number).unwrap() };
                    spoke.insert_one(whole).await.unwrap();
                }
                number += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            number * spokes.len() as u64
        });
        Self { done, task }
    }

    /// Ends, and returns the number of inserted documents.
    async fn end(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// The longest time for which the hub had no new document of a zone, while documents were written all the time.
struct Gaps {
    done: Arc<AtomicBool>,
    task: JoinHandle<BTreeMap<String, Duration>>,
}

impl Gaps {
    fn watch(site: &Site) -> Self {
        let (hub, zones) = (site.at(HUB), site.topology().iter().map(|(zone, _)| zone.clone()).collect::<Vec<_>>());
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let mut newest: BTreeMap<String, (Option<String>, Instant)> =
                zones.iter().map(|zone| (zone.clone(), (None, began))).collect();
            let mut longest: BTreeMap<String, Duration> = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                for zone in &zones {
                    // The `_id`s of a zone ascend.
                    let range = doc! { "_id": { "$gt": format!("{zone} "), "$lt": format!("{zone} :") } };
                    let last = hub.find_one(range).sort(doc! { "_id": -1 }).await.unwrap();
                    let last = last.map(|last| last.get_str("_id").unwrap().to_owned());
                    let (seen, at) = newest.get_mut(zone).unwrap();
                    if *seen != last {
                        let gap = at.elapsed();
                        longest.entry(zone.clone()).and_modify(|longest| *longest = gap.max(*longest)).or_insert(gap);
                        (*seen, *at) = (last, Instant::now());
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            longest
        });
        Self { done, task }
    }

    /// Prints the longest gap of each spoke.
    async fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        let longest = self.task.await.unwrap();
        let shown: Vec<String> =
            longest.iter().map(|(zone, gap)| format!("{zone} {:.1} s", gap.as_secs_f64())).collect();
        println!("longest gaps: {}", shown.join(", "));
    }
}

/// The sessions in use for these zones, at the hub and at the spokes: the server and the session's id.
async fn sessions(site: &Site, zones: &BTreeSet<String>) -> Vec<(String, Bson)> {
    let mut all = Vec::new();
    for name in site.topology().iter().map(|(zone, _)| zone.as_str()).chain([HUB]) {
        let zones: Vec<&String> = zones.iter().collect();
        let in_use = doc! { "zone": { "$in": zones }, "ended_at": { "$exists": false } };
        let found = site.own_collection(name, "sessions").find(in_use).await.unwrap();
        let found: Vec<Document> = found.try_collect().await.unwrap();
        all.extend(found.into_iter().map(|session| (name.to_owned(), session.get("_id").unwrap().clone())));
    }
    all
}

/// The number of the newest committed transaction of each session.
async fn committed(site: &Site, sessions: &[(String, Bson)]) -> Vec<Option<i64>> {
    let mut numbers = Vec::new();
    for (name, id) in sessions {
        let all: Collection<Document> = site.client(name).database("config").collection("transactions");
        let found = all.find_one(doc! { "_id.id": id, "state": "committed" }).await.unwrap();
        numbers.push(found.and_then(|found| found.get_i64("txnNum").ok()));
    }
    numbers
}

/// Checks that the hub saw each of the application's documents as one insert, and no other event.
async fn each_once(site: &Site, events: &mut Events, documents: u64) {
    site.settle().await;
    let seen = events.so_far().await;
    let ids: BTreeSet<String> =
        seen.iter().map(|event| event.document_key.as_ref().unwrap().get_str("_id").unwrap().to_owned()).collect();
    assert_eq!((seen.len() as u64, ids.len() as u64), (documents, documents));
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accident {
    /// It is killed, and another one is started later.
    Kill,
    /// It is frozen, and wakes up later.
    Freeze,
    /// It cannot reach the hub for a while.
    Cut,
    /// An operator stops it, and starts another one later.
    Stop,
}

/// Three processes that share the spokes, each with a separate wire to the hub.
struct Team {
    site: Site,
    members: Vec<(Program, Proxy)>,
    /// Numbers the processes.
    started: usize,
}

impl Team {
    async fn start(site: Site) -> Self {
        let mut team = Self { site, members: Vec::new(), started: 0 };
        for _ in 0..3 {
            team.add().await;
        }
        team.share().await;
        team
    }

    async fn add(&mut self) {
        self.started += 1;
        let proxy = Proxy::to(self.site.nodes[HUB].port()).await.unwrap();
        let program = self.site.member_by(&format!("member{}", self.started), &proxy.uri());
        self.members.push((program, proxy));
    }

    /// Waits until each process runs its share.
    async fn share(&self) {
        self.share_without(None).await;
    }

    /// Waits until each process except one runs its share.
    async fn share_without(&self, away: Option<usize>) {
        let present = self.members.iter().enumerate().filter(|(place, _)| Some(*place) != away);
        let programs: Vec<&Program> = present.map(|(_, (program, _))| program).collect();
        shared_among(&self.site, &programs).await;
    }

    /// Lets the accident happen to a process. Waits until the others run its spokes, and then until all share again.
    async fn suffer(&mut self, accident: Accident, place: usize) {
        println!("{accident:?} of process {place}");
        match accident {
            Accident::Kill => {
                drop(self.members.remove(place));
                self.share().await;
                self.add().await;
            }
            Accident::Stop => {
                let (mut program, _proxy) = self.members.remove(place);
                assert_eq!(program.stop(Signal::SIGTERM, LIMIT).await.unwrap(), Some(0), "{}", program.log());
                self.share().await;
                self.add().await;
            }
            Accident::Freeze => self.freeze(place).await,
            Accident::Cut => {
                self.members[place].1.set(Wire::Cut);
                self.share_without(Some(place)).await;
                self.members[place].1.set(Wire::Open);
            }
        }
        self.share().await;
    }

    /// Freezes a process until the others run its spokes, and checks that it commits nothing when it wakes up.
    async fn freeze(&self, place: usize) {
        let program = &self.members[place].0;
        let own = sessions(&self.site, &held(program)).await;
        let deaths = || program.log().matches("took this process for dead").count();
        let former = deaths();
        program.process().signal(Signal::SIGSTOP).unwrap();
        self.share_without(Some(place)).await;
        let before = committed(&self.site, &own).await;
        assert!(before.iter().any(Option::is_some), "{own:?}");
        program.process().signal(Signal::SIGCONT).unwrap();
        eventually("the woken process joins again as a newcomer", async || {
            deaths() > former && members(&program.status().unwrap()) == 3
        })
        .await;
        assert_eq!(before, committed(&self.site, &own).await, "it committed after the others had taken over");
    }
}

/// `make soak` goes on for `SOAK_MINUTES`; `SOAK_SEED` repeats the accidents of an earlier run.
#[tokio::test(flavor = "multi_thread")]
async fn a_soak_of_accidents_loses_and_repeats_nothing_and_every_spoke_goes_on() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("SOAK_SEED").unwrap_or_else(rand::random);
    println!("SOAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(60 * number("SOAK_MINUTES").unwrap_or(0));
    let mut site = Site::crowd(NINE).await;
    LEASE.clone_into(&mut site.more_config);
    let mut team = Team::start(site).await;
    let mut events = Events::watch(team.site.at(HUB)).await;
    let (application, gaps) = (Application::start(&team.site), Gaps::watch(&team.site));
    loop {
        let mut accidents = [Accident::Kill, Accident::Freeze, Accident::Cut, Accident::Stop];
        accidents.shuffle(&mut random);
        for accident in accidents {
            team.suffer(accident, random.random_range(0..3)).await;
        }
        if Instant::now() >= end {
            break;
        }
    }
    gaps.end().await;
    let documents = application.end().await;
    // One process alone runs everything, and shows the positions of all links.
    team.members.truncate(1);
    team.share().await;
    let (program, _proxy) = team.members.remove(0);
    team.site.program = Some(program);
    each_once(&team.site, &mut events, documents).await;
    team.site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_its_process_and_every_member_takes_every_command() {
    let mut site = Site::shared(TRIANGLE).await;
    let (mut first, second) = (site.member("first"), site.member("second"));
    let shares = shared_among(&site, &[&first, &second]).await;
    let (of_first, of_second) = (shares[0].first().unwrap(), shares[1].first().unwrap());
    // Each member is asked for a spoke of the other.
    for (asked, zone) in [(&second, of_first), (&first, of_second)] {
        for action in ["restart", "resync", "dead-letters/retry", "pause"] {
            let (code, answer) = asked.post(&format!("/api/v1/spokes/{zone}/{action}")).unwrap();
            assert_eq!((code, &answer), (202, &json!({ "status": "accepted" })), "{action}");
        }
        let (code, answer) = asked.post(&format!("/api/v1/spokes/{zone}/pause")).unwrap();
        assert_eq!((code, &answer), (409, &json!({ "error": format!("spoke {zone}: paused already") })));
        let (code, _) = asked.post("/api/v1/spokes/NOWHERE/pause").unwrap();
        assert_eq!(code, 404);
    }
    let state = |program: &Program, zone: &str| {
        let status = program.status().unwrap();
        let spokes = status["spokes"].as_array().unwrap();
        spokes.iter().find(|spoke| spoke["zone"] == zone).unwrap()["state"].as_str().unwrap().to_owned()
    };
    eventually("both spokes are paused", async || {
        state(&first, of_first) == "paused" && state(&second, of_second) == "paused"
    })
    .await;
    // The pause moves with the spoke.
    assert_eq!(first.stop(Signal::SIGTERM, LIMIT).await.unwrap(), Some(0));
    shared_among(&site, &[&second]).await;
    assert_eq!(state(&second, of_first), "paused");
    // It outlives all processes, and a resume ends it for good.
    drop(second);
    site.start().await;
    assert_eq!(site.spoke_status(of_first)["state"], "paused");
    let program = site.program.as_ref().unwrap();
    for zone in [of_first, of_second] {
        assert_eq!(program.post(&format!("/api/v1/spokes/{zone}/resume")).unwrap().0, 202);
    }
    site.ready().await;
    site.kill();
    site.start().await;
    for (zone, _) in site.topology() {
        assert_eq!(site.spoke_status(zone)["state"], "streaming", "{zone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_in_the_first_copy_goes_on_where_it_was() {
    const DOCUMENTS: i32 = 60_000;
    let mut site = Site::shared(TRIANGLE).await;
    let all = (0..DOCUMENTS).map(|number| doc! { "_id": format!("{number:06}"), "_pk": "DFW" });
    site.at("DFW").insert_many(all).await.unwrap();
    let mut events = Events::watch(site.at(HUB)).await;
    let copied = async || i32::try_from(site.at(HUB).estimated_document_count().await.unwrap()).unwrap();
    // Every holder is killed on the way, four times; the last one stays.
    for number in 1..=4 {
        let program = site.member(&format!("member{number}"));
        let enough = DOCUMENTS / 6 * number;
        eventually("a part is copied", async || copied().await >= enough).await;
        drop(program);
    }
    site.start().await;
    site.assert_converged().await;
    let seen = events.so_far().await;
    assert_eq!(seen.len(), usize::try_from(DOCUMENTS).unwrap(), "documents inserted at the hub, in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn different_files_are_told_and_what_only_one_member_knows_runs_there() {
    let mut site = Site::shared(TRIANGLE).await;
    let first = site.member("first");
    shared_among(&site, &[&first]).await;
    site.remove("BOS");
    let second = site.member("second");
    eventually("both say that their files differ", async || {
        [&first, &second].iter().all(|program| program.log().contains("the configurations of two members differ"))
    })
    .await;
    eventually("the common spokes are shared, and BOS stays", async || {
        let (first, second) = (held(&first), held(&second));
        first.contains("BOS") && first.len() == 2 && second.len() == 1
    })
    .await;
    let status = first.status().unwrap();
    let same: Vec<&Value> =
        status["cluster"]["members"].as_array().unwrap().iter().map(|one| &one["has_same_configuration"]).collect();
    assert!(same.contains(&&json!(false)) && same.contains(&&json!(true)), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_too_old_for_the_metadata_says_so_and_carries_nothing() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.stop().await;
    let newer = doc! { "$set": { "version": 1_000_i64 } };
    site.own_collection(HUB, "identity").update_one(doc! { "_id": "format" }, newer).await.unwrap();
    site.launch();
    eventually("it says that it is too old", async || {
        let Ok(status) = site.program.as_ref().unwrap().status() else { return false };
        status["cluster"]["last_error"].as_str().is_some_and(|error| error.contains("run the newer program"))
    })
    .await;
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.at(HUB).count_documents(doc! {}).await.unwrap(), 0);
    assert_eq!(site.program.as_ref().unwrap().get("/readyz").unwrap().0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_spoke_is_ready_to_run_one() {
    let site = Site::shared(&[("DFW", &[])]).await;
    let first = site.member("first");
    shared_among(&site, &[&first]).await;
    let mut second = site.member("second");
    second.ready(LIMIT).await.unwrap();
    assert!(held(&second).is_empty());
    drop(first);
    shared_among(&site, &[&second]).await;
    everything_streams(&site, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_without_a_common_spoke_do_not_disturb_each_other() {
    let mut site = Site::shared(&[("DFW", &[]), ("HOU", &[])]).await;
    LEASE.clone_into(&mut site.more_config);
    site.remove("HOU");
    let first = site.member("first");
    site.remove("DFW");
    site.add("HOU", &[]);
    // Its heartbeats are farther apart than the other's lease is long.
    "[cluster]\nlease_seconds = 40".clone_into(&mut site.more_config);
    let second = site.member("second");
    site.add("DFW", &[]);
    eventually("each runs its own", async || held(&first).contains("DFW") && held(&second).contains("HOU")).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    for program in [&first, &second] {
        let status = program.status().unwrap();
        assert_eq!((members(&status), &status["cluster"]["leases_lost_total"]), (1, &json!(0)), "{status:#}");
        assert!(!program.log().contains("differ") && !program.log().contains("for dead"), "{}", program.log());
    }
    everything_streams(&site, "apart").await;
}
