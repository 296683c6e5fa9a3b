//! The promise: nothing that an application wrote ever vanishes, whatever applications, operators and faults do.
//!
//! A [programme] is made from a seed. [Applications](applications) at the hub and at three spokes do their part of it
//! and [remember](log) what they were told; [operators] interfere, and servers, wires and the program fail. At rest,
//! the [judgement](judge) is a pure function of what was written and of what is there. A broken promise is printed with
//! the shortest history that a few shorter runs of the programme still show.
//!
//! `make test` runs a few seeds, `make soak MINUTES=…` as many as fit into the time. `PROMISE_SEED=…` runs one seed.
//! The seed determines what happens and when it begins, not how the servers interleave it. So `make test` fails if the
//! same programme breaks a promise of the same kind in each of three runs, and `make soak` at the first time.

mod applications;
mod counters;
mod judge;
mod log;
mod operators;
mod programme;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use testbed::node::Options;

use self::applications::{Application, UNIQUE_AT, unique};
use self::judge::{Finding, Loss, Rest};
use self::log::Written;
use self::operators::Operators;
use self::programme::{Act, Programme, SITES, SPOKES, id};
use super::support::Site;

/// Seeds with the other tests.
const SEEDS: [u64; 2] = [1, 2];

/// Phases of a programme.
const PHASES: usize = 2;

/// Time for dead letters without a lasting reason to go, and for the rest to become quiet.
const REST: Duration = Duration::from_secs(40);

/// Further runs of a programme that broke a promise.
const REPETITIONS: usize = 2;

/// Shorter runs after a broken promise, at most.
const SHORTER_RUNS: usize = 8;

/// The history of a programme that broke a promise.
struct Broken {
    findings: Vec<Finding>,
    log: Vec<Written>,
    acts: Vec<(u128, Act)>,
    rest: Rest,
    /// What the program logged.
    told: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_an_application_wrote_vanishes() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let end = number("SOAK_MINUTES").map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let seeds: Box<dyn Iterator<Item = u64> + Send> = match (number("PROMISE_SEED"), end) {
        (Some(seed), _) => Box::new(std::iter::once(seed)),
        (None, Some(end)) => Box::new(std::iter::repeat_with(rand::random).take_while(move |_| Instant::now() < end)),
        (None, None) => Box::new(SEEDS.into_iter()),
    };
    let mut site = Site::own(SPOKES, Options::default()).await;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut runs, mut broken_runs) = (0, 0);
    for seed in seeds {
        let programme = Programme::new(seed, PHASES);
        runs += 1;
        site.renew(SPOKES).await;
        let Some(broken) = run(&mut site, &programme).await else {
            println!("PROMISE_SEED={seed}: kept");
            continue;
        };
        broken_runs += 1;
        for finding in &broken.findings {
            *kinds.entry(finding.kind).or_default() += 1;
        }
        println!("PROMISE_SEED={seed}: broken\n{}", broken.show());
        if end.is_none() {
            let Some(again) = repeated(&mut site, &programme, &broken).await else {
                broken_runs -= 1;
                continue;
            };
            let shortest = shorten(&mut site, programme, again).await;
            panic!("PROMISE_SEED={seed}\n{}", shortest.show());
        }
    }
    println!("{runs} programmes, {broken_runs} of them broke a promise: {kinds:?}");
    assert_eq!(broken_runs, 0, "{kinds:?}");
}

/// Runs a programme that broke a promise again. `None` unless it breaks a promise of the same kind every time.
async fn repeated(site: &mut Site, programme: &Programme, broken: &Broken) -> Option<Broken> {
    let mut last = None;
    for _ in 0..REPETITIONS {
        site.renew(SPOKES).await;
        let again = run(site, programme).await?;
        let kind = broken.findings[0].kind;
        last = Some(again).filter(|again| again.findings.iter().any(|finding| finding.kind == kind));
        last.as_ref()?;
    }
    last
}

/// Runs a programme. Returns the history if a promise is broken.
async fn run(site: &mut Site, programme: &Programme) -> Option<Broken> {
    let begun = Instant::now();
    let log = applications::Log::new(Mutex::new(Vec::new()));
    let mut acts = Vec::new();
    for name in UNIQUE_AT {
        unique(&site.at(name)).await.unwrap();
    }
    let counts = Arc::new(counters::new());
    counters::create(site, &counts).await;
    let mut operators = Operators::of(site, begun).await;
    site.start().await;
    for (number, phase) in programme.phases.iter().enumerate() {
        operators.prepare(site, &phase.acts).await;
        let mut direct = BTreeMap::new();
        for name in SITES {
            direct.insert(name, site.nodes[name].direct_client().await.unwrap());
        }
        let applications = SITES.map(|name| {
            let (client, namespace) = (direct[name].clone(), site.at(name).namespace());
            let application = Application {
                site: name,
                collection: client.database(&namespace.db).collection(&namespace.coll),
                client,
                log: Arc::clone(&log),
                begun,
            };
            let planned = phase.writes.iter().filter(|planned| planned.site == name).cloned().collect();
            tokio::spawn(application.run(number, planned))
        });
        let since = counters::now(site).await;
        let counting = counts.keys().copied().map(|name| {
            let (counts, namespace) = (Arc::clone(&counts), site.at(name).namespace());
            let collection = direct[name].database(&namespace.db).collection(&namespace.coll);
            tokio::spawn(async move { counters::count(name, &collection, &counts[name]).await })
        });
        let counting: Vec<_> = counting.collect();
        let began = Instant::now();
        for (at, act) in &phase.acts {
            tokio::time::sleep_until((began + Duration::from_millis(*at)).into()).await;
            acts.push((begun.elapsed().as_millis(), act.clone()));
            operators.act(site, act).await;
        }
        for application in applications {
            application.await.unwrap();
        }
        for counting in counting {
            counting.await.unwrap();
        }
        operators.end(site).await;
        let (mut findings, rest) = come_to_rest(site, &log, &operators.losses).await;
        // A server that lost something lost counts as well.
        if operators.losses.is_empty() {
            findings.extend(counters::judge(site, &counts, &since).await);
        }
        findings.extend(site.log().lines().filter(|line| line.contains("panicked")).map(|line| Finding {
            kind: "panic",
            document: String::new(),
            what: line.to_owned(),
        }));
        if !findings.is_empty() {
            let log = log.lock().unwrap().clone();
            return Some(Broken { findings, log, acts, rest, told: site.log() });
        }
    }
    site.kill();
    None
}

/// Waits until every link streams and nothing is under way, and judges. A finding must last.
async fn come_to_rest(site: &mut Site, log: &applications::Log, losses: &[Loss]) -> (Vec<Finding>, Rest) {
    for (zone, _) in site.topology() {
        site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/restart")).unwrap();
    }
    site.ready().await;
    let deadline = Instant::now() + REST;
    loop {
        for (zone, _) in site.topology() {
            drop(site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/dead-letters/retry")));
        }
        site.settle().await;
        let mut findings = unsettled(site).await;
        while !findings.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            findings = unsettled(site).await;
        }
        site.settle().await;
        let rest = Rest { losses: losses.to_vec(), ..read(site).await };
        findings.extend(judge::judge(&log.lock().unwrap(), &rest));
        if findings.is_empty() || Instant::now() > deadline {
            return (findings, rest);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// The documents about which a decision is still to be taken.
async fn unsettled(site: &Site) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in SITES {
        let mut left = site.own_collection(name, "unsettled").find(doc! {}).await.unwrap();
        while let Some(left) = left.try_next().await.unwrap() {
            let document = judge::letter_id(&left).unwrap_or_default();
            findings.push(Finding { kind: "unsettled", document, what: format!("at {name}: {left}") });
        }
    }
    findings
}

/// Reads all servers.
async fn read(site: &Site) -> Rest {
    let mut rest = Rest::default();
    for (zone, watch) in site.topology() {
        let held = std::iter::once(zone).chain(watch).cloned().collect();
        rest.held.insert(zone.clone(), held);
    }
    for name in SITES {
        let collection = site.at(name).clone_with_type::<RawDocumentBuf>();
        let all: Vec<RawDocumentBuf> = collection.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        let by_id = all.into_iter().map(|document| (document.get_str("_id").unwrap().to_owned(), document));
        rest.documents.insert(name.to_owned(), by_id.collect());
        let own = async |collection: &str| -> Vec<Document> {
            site.own_collection(name, collection).find(doc! {}).await.unwrap().try_collect().await.unwrap()
        };
        let of = |document: &Document| document.get_document("_id").unwrap().get_str("document").unwrap().to_owned();
        rest.aside.extend(own("set_aside").await);
        rest.letters.extend(own("dead_letters").await.into_iter().map(|letter| (name.to_owned(), letter)));
        for mark in own("dropped_letters").await {
            let link = mark.get_document("_id").unwrap().get_str("link").unwrap();
            let (_, zone) = link.split_once(':').unwrap();
            rest.dropped.insert((zone.to_owned(), of(&mark)));
        }
        rest.foreign.extend(own("foreign").await.iter().map(|document| (name.to_owned(), of(document))));
    }
    rest
}

/// Looks for a shorter programme that still breaks a promise of the same kind.
async fn shorten(site: &mut Site, programme: Programme, broken: Broken) -> Broken {
    let (mut shortest, mut best) = (broken, programme);
    let mut tries = SHORTER_RUNS;
    let mut attempt = async |site: &mut Site, shorter: Programme, best: &mut Programme, shortest: &mut Broken| {
        if tries == 0 {
            return false;
        }
        tries -= 1;
        site.renew(SPOKES).await;
        let Some(again) = run(site, &shorter).await else { return false };
        let is_same = again.findings.iter().any(|finding| finding.kind == shortest.findings[0].kind);
        if is_same {
            (*best, *shortest) = (shorter, again);
        }
        is_same
    };
    let concerned = |broken: &Broken| -> BTreeSet<u8> {
        (0..=u8::MAX)
            .filter(|document| broken.findings.iter().any(|finding| finding.document == id(*document)))
            .collect()
    };
    let only = best.only(&concerned(&shortest));
    attempt(site, only, &mut best, &mut shortest).await;
    let mut number = 0;
    while let Some(shorter) = best.without_act(number) {
        if !attempt(site, shorter, &mut best, &mut shortest).await {
            number += 1;
        }
    }
    shortest
}

impl Broken {
    /// The findings, and for each document what applications and operators did, in order.
    fn show(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            writeln!(text, "{}: {}: {}", finding.kind, finding.document, finding.what).unwrap();
        }
        let documents: BTreeSet<&String> = self.findings.iter().map(|finding| &finding.document).collect();
        for document in documents {
            writeln!(text, "\n{document}:").unwrap();
            let mut lines: Vec<(u128, String)> = Vec::new();
            for w in self.log.iter().filter(|written| written.document == *document) {
                let value = w.value.as_deref().unwrap_or("");
                let before = w.before.as_ref().map(ToString::to_string).unwrap_or_default();
                lines.push((w.at, format!("{} {} {value} {:?} on {before}", w.site, w.change, w.outcome)));
            }
            lines.extend(self.acts.iter().map(|(at, act)| (*at, format!("            {act:?}"))));
            lines.sort();
            for (at, line) in lines {
                writeln!(text, "{at:>8} ms {line}").unwrap();
            }
            for (site, documents) in &self.rest.documents {
                let present = documents.get(document).map(|raw| Document::try_from(raw.clone()).unwrap());
                writeln!(text, "   at {site}: {}", present.map_or("nothing".to_owned(), |p| p.to_string())).unwrap();
            }
            for aside in self.rest.aside.iter().filter(|aside| judge::letter_id(aside).as_deref() == Some(document)) {
                writeln!(text, "   set aside: {aside}").unwrap();
            }
            for line in self.told.lines().filter(|line| line.contains(&format!("\"{document}\""))) {
                writeln!(text, "   told: {line}").unwrap();
            }
            for (site, letter) in &self.rest.letters {
                if judge::letter_id(letter).as_deref() == Some(document) {
                    writeln!(text, "   dead letter at {site}: {letter}").unwrap();
                }
            }
        }
        text
    }
}
