//! Verification: every kind of difference is found, named and repaired, and none is invented, while applications go on
//! writing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use mongodb::{ClientSession, Collection};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use testbed::node::Options;

use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

const EQUAL: i32 = 0;
const CANNOT_TELL: i32 = 1;
const DIFFERENT: i32 = 3;

fn whole(id: &str, zone: &str) -> Document {
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![0b1010_1010; 8] };
    doc! { "_id": id, "_pk": zone, "n": 9, "x": 1.5, "bytes": bytes, "list": [1, 2, 3], "nested": { "a": 1, "b": 2 } }
}

async fn fill(site: &Site, zone: &str, number: usize) {
    let documents = (0..number).map(|id| whole(&format!("{zone} {id:06}"), zone));
    site.at(zone).insert_many(documents).await.unwrap();
}

/// A session registered as the program's own, so the program ignores the session's changes.
struct Hidden {
    session: ClientSession,
    collection: Collection<Document>,
}

impl Hidden {
    async fn at(site: &Site, name: &str) -> Self {
        let session = site.client(name).start_session().await.unwrap();
        let id = session.id().get("id").unwrap().clone();
        let known = doc! { "_id": id, "link": "repair:test", "zone": "test" };
        // The driver may reuse a session that is registered already.
        drop(site.own_collection(name, "sessions").insert_one(known).await);
        Self { session, collection: site.at(name) }
    }

    async fn begin(&mut self) {
        self.session.start_transaction().await.unwrap();
    }

    async fn commit(&mut self) {
        self.session.commit_transaction().await.unwrap();
    }

    async fn delete(&mut self, id: &str) {
        self.begin().await;
        let deleted = self.collection.delete_one(doc! { "_id": id }).session(&mut self.session).await.unwrap();
        assert_eq!(deleted.deleted_count, 1, "{id}");
        self.commit().await;
    }

    async fn put(&mut self, document: Document) {
        self.begin().await;
        let filter = doc! { "_id": document.get("_id").unwrap() };
        self.collection.replace_one(filter, document).upsert(true).session(&mut self.session).await.unwrap();
        self.commit().await;
    }

    /// Corrupts documents of a zone in ten ways. Returns the expected finding for each.
    async fn corrupt(&mut self, zone: &str) -> BTreeMap<String, (&'static str, Vec<&'static str>)> {
        let id = |number: usize| format!("{zone} {number:06}");
        let mut expected = BTreeMap::new();
        self.delete(&id(10)).await;
        expected.insert(id(10), ("missing", vec![]));
        self.put(whole(&format!("{zone} added"), zone)).await;
        expected.insert(format!("{zone} added"), ("extra", vec![]));
        let mut twin = whole(&id(20), zone);
        twin.insert("_id", format!("{} twin", id(20)));
        self.put(twin).await;
        expected.insert(format!("{} twin", id(20)), ("extra", vec![]));
        // One field each: a flipped bit, another type, another value, a shorter array.
        let changes: [(usize, &str, Bson, &str); 4] = [
            (
                30,
                "bytes",
                Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0b1010_1011; 8] }),
                "bytes",
            ),
            (40, "n", Bson::Double(9.0), "n"),
            (50, "x", Bson::Double(1.7), "x"),
            (60, "list", Bson::Array(vec![Bson::Int32(1), Bson::Int32(2)]), "list.2"),
        ];
        for (number, field, value, path) in changes {
            let mut changed = whole(&id(number), zone);
            changed.insert(field, value);
            self.put(changed).await;
            expected.insert(id(number), ("different", vec![path]));
        }
        let mut reordered = whole(&id(70), zone);
        let nested = reordered.remove("nested").unwrap();
        let list = reordered.remove("list").unwrap();
        reordered.insert("nested", nested);
        reordered.insert("list", list);
        self.put(reordered).await;
        expected.insert(id(70), ("different", vec!["(order of fields)"]));
        self.put(whole(&id(80), "NOWHERE")).await;
        expected.insert(id(80), ("different", vec!["_pk"]));
        let mut unstamped = whole(&id(90), zone);
        unstamped.remove("_pk");
        self.put(unstamped).await;
        expected.insert(id(90), ("unstamped", vec!["_pk"]));
        expected
    }
}

fn verify(site: &Site, more: &[&str]) -> (i32, Value) {
    let arguments: Vec<&str> = ["verify", "--json"].iter().chain(more).copied().collect();
    let (code, text) = site.command_code(&arguments);
    (code, serde_json::from_str(&text).unwrap_or(Value::Null))
}

fn found(report: &Value) -> BTreeMap<String, (String, Vec<String>)> {
    let findings = report["findings"].as_array().unwrap();
    let read = |finding: &Value| {
        let paths = finding["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect();
        let key = format!("{} {}", finding["spoke"].as_str().unwrap(), finding["id"].as_str().unwrap());
        (key, (finding["kind"].as_str().unwrap().to_owned(), paths))
    };
    findings.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kinds_of_corruption_are_found_named_and_repaired() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    fill(&site, "DFW", 500).await;
    fill(&site, "HOU", 500).await;
    site.assert_converged().await;
    let (code, report) = verify(&site, &[]);
    assert_eq!((code, report["documents"].as_u64()), (EQUAL, Some(2_000)), "{report:#}");

    // Corrupts documents at a spoke that watches the zone, and at the owner.
    let mut expected = BTreeMap::new();
    for (name, zone) in [("HOU", "DFW"), ("DFW", "DFW"), ("DFW", "HOU")] {
        let harm = Hidden::at(&site, name).await.corrupt(zone).await;
        let own = |(kind, paths): (&str, Vec<&str>)| {
            (kind.to_owned(), paths.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        expected.extend(harm.into_iter().map(|(id, told)| (format!("{name} {id}"), own(told))));
    }
    site.settle().await;
    let (code, report) = verify(&site, &[]);
    assert_eq!(code, DIFFERENT, "{report:#}");
    assert_eq!(found(&report), expected, "{report:#}");
    assert_eq!(report["differences"], expected.len());

    let (code, report) = verify(&site, &["--repair"]);
    assert_eq!((code, report["repaired"].as_u64()), (EQUAL, Some(expected.len() as u64)), "{report:#}");
    site.assert_converged().await;
    assert_eq!(verify(&site, &[]).0, EQUAL);
    // The hub's documents are unchanged, and the document that only the owner had went up.
    for id in [10, 30, 40, 50, 60, 70, 80, 90] {
        let id = format!("DFW {id:06}");
        assert_eq!(site.at(HUB).find_one(doc! { "_id": &id }).await.unwrap(), Some(whole(&id, "DFW")));
    }
    assert!(site.at(HUB).find_one(doc! { "_id": "DFW added" }).await.unwrap().is_some());
    assert!(site.at("DFW").find_one(doc! { "_id": "HOU added" }).await.unwrap().is_none());
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_and_parked_documents_are_reported_as_such_and_purged_only_on_request() {
    let mut site = Site::shared(TRIANGLE).await;
    site.at(HUB).insert_one(doc! { "_id": "same", "_pk": "BOS" }).await.unwrap();
    site.start().await;
    fill(&site, "DFW", 100).await;
    // HOU writes in a watched zone, and in a zone that HOU does not hold.
    site.at("HOU").insert_one(doc! { "_id": "watched", "_pk": "DFW" }).await.unwrap();
    site.at("HOU").insert_one(doc! { "_id": "strange", "_pk": "NOWHERE" }).await.unwrap();
    site.at("DFW").insert_one(doc! { "_id": "same", "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    let told = |kind: &str| (kind.to_owned(), Vec::<String>::new());
    let expected = BTreeMap::from([
        ("HOU watched".to_owned(), told("foreign")),
        ("HOU strange".to_owned(), told("foreign")),
        ("DFW same".to_owned(), ("parked".to_owned(), vec!["_pk".to_owned()])),
    ]);
    let (code, report) = verify(&site, &[]);
    assert_eq!((code, found(&report)), (DIFFERENT, expected.clone()), "{report:#}");
    let (code, report) = verify(&site, &["--repair"]);
    assert_eq!(
        (code, found(&report)),
        (DIFFERENT, expected),
        "repair leaves foreign and parked documents alone: {report:#}"
    );
    let (_, report) = verify(&site, &["--repair", "--purge-foreign", "--spoke", "HOU"]);
    assert_eq!(report["repaired"], 2, "{report:#}");
    assert_eq!(site.at("HOU").count_documents(doc! {}).await.unwrap(), 100);
    assert!(site.at("DFW").find_one(doc! { "_id": "same" }).await.unwrap().is_some());
    assert_eq!(verify(&site, &["--zone", "DFW", "--spoke", "HOU"]).0, EQUAL);
    let (code, _) = site.command_code(&["verify", "--spoke", "NYC"]);
    assert_eq!(code, 2);
}

/// Inserts, edits and deletes documents until `done` is set. Returns the number of changes.
fn traffic(
    collection: Collection<Document>,
    zone: &'static str,
    seed: u64,
    done: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let (mut random, mut changes) = (StdRng::seed_from_u64(seed), 0);
        while !done.load(Ordering::Relaxed) {
            // A few documents change all the time.
            let number =
                if random.random_bool(0.3) { random.random_range(100..105) } else { random.random_range(100..200_000) };
            let id = format!("{zone} {number:06}");
            match random.random_range(0..10) {
                0 => drop(collection.delete_one(doc! { "_id": &id }).await.unwrap()),
                1 => {
                    let put = whole(&id, zone);
                    drop(collection.replace_one(doc! { "_id": &id }, put).upsert(true).await.unwrap());
                }
                _ => {
                    let update = doc! { "$inc": { "n": 1 }, "$set": { format!("by{seed}"): changes } };
                    drop(collection.update_one(doc! { "_id": &id, "_pk": zone }, update).await.unwrap());
                }
            }
            changes += 1;
        }
        changes as u64
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_writes_raise_no_false_alarm_and_hide_nothing() {
    let mut site = Site::own(&[("DFW", &[]), ("HOU", &["DFW"])], Options::default()).await;
    site.start().await;
    for start in (0..60_000).step_by(10_000) {
        let documents = (start..start + 10_000).map(|id| whole(&format!("DFW {id:06}"), "DFW"));
        site.at("DFW").insert_many(documents).await.unwrap();
    }
    site.settle().await;
    let done = Arc::new(AtomicBool::new(false));
    let writers = [traffic(site.at("DFW"), "DFW", 1, done.clone()), traffic(site.at(HUB), "DFW", 2, done.clone())];
    let until = Instant::now() + Duration::from_secs(20);
    let mut rounds = 0;
    while Instant::now() < until {
        let quick = if rounds % 3 == 2 { ["--quick"].as_slice() } else { &[] };
        let (code, report) = verify(&site, quick);
        assert_eq!(report["findings"], json!([]), "{report:#}");
        // Only documents that hub and owner repeatedly change at the same moment may stay undecided.
        assert!(code == EQUAL || report["untold"].to_string().contains("change all the time"), "{report:#}");
        rounds += 1;
    }
    // Corruption during the writes is found, and the repair undoes no write.
    let mut hidden = Hidden::at(&site, "HOU").await;
    hidden.delete("DFW 000010").await;
    let mut changed = whole("DFW 000020", "DFW");
    changed.insert("x", 1.7);
    hidden.put(changed).await;
    let (code, report) = verify(&site, &[]);
    let told: Vec<String> = found(&report).into_keys().collect();
    assert_eq!((code, told), (DIFFERENT, vec!["HOU DFW 000010".to_owned(), "HOU DFW 000020".to_owned()]), "{report:#}");
    let (_, report) = verify(&site, &["--repair"]);
    assert_eq!(report["repaired"], 2, "{report:#}");
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 500);
    }
    site.assert_converged().await;
    assert_eq!(verify(&site, &[]).0, EQUAL);
    assert!(rounds >= 3, "{rounds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_verification_resumes_its_progress_and_survives_a_server_restart() {
    let mut site = Site::own(&[("DFW", &[])], Options::default()).await;
    site.start().await;
    for start in (0..120_000).step_by(10_000) {
        let documents = (start..start + 10_000).map(|id| doc! { "_id": id, "_pk": "DFW" });
        site.at("DFW").insert_many(documents).await.unwrap();
    }
    site.settle().await;
    let mut hidden = Hidden::at(&site, HUB).await;
    hidden.begin().await;
    hidden.collection.delete_one(doc! { "_id": 17 }).session(&mut hidden.session).await.unwrap();
    hidden.commit().await;
    let noted = async |documents: i32| {
        site.own_collection(HUB, "verifications").find_one(doc! { "documents": { "$gt": documents } }).await.unwrap()
    };
    // Further progress shows that the process is past the start and listens to signals.
    for (signal, documents) in [(Signal::SIGKILL, 30_000), (Signal::SIGINT, 60_000)] {
        let process = site.begin(&["verify", "--rate", "15000"], &format!("{signal}"));
        eventually("the progress is saved", async || noted(documents).await.is_some()).await;
        process.signal(signal).unwrap();
        let mut process = process;
        eventually("the verification has ended", async || process.exit().unwrap().is_some()).await;
        assert!(noted(documents).await.is_some(), "{signal} has deleted the progress");
    }
    // The resumed verification reports earlier findings without a second comparison, and survives a server's restart.
    site.nodes.get_mut("DFW").unwrap().kill().unwrap();
    let process = site.begin(&["verify", "--json", "--rate", "60000"], "resumed");
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.nodes.get_mut("DFW").unwrap().restart().await.unwrap();
    let mut process = process;
    let mut code = None;
    eventually("the verification has ended", async || {
        code = process.exit().unwrap();
        code.is_some()
    })
    .await;
    let text = std::fs::read_to_string(site.folder().join("resumed")).unwrap();
    assert_eq!(code, Some(Some(DIFFERENT)), "{text}");
    assert!(text.contains("\"id\": 17") && text.contains("\"kind\": \"extra\""), "{text}");
    assert_eq!(site.own_collection(HUB, "verifications").count_documents(doc! {}).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_running_process_changes_in_transit_are_not_reported_as_differences() {
    let mut site = Site::shared(TRIANGLE).await;
    assert_eq!(verify(&site, &[]).0, CANNOT_TELL, "nothing was ever synced");
    site.start().await;
    fill(&site, "DFW", 200).await;
    site.assert_converged().await;
    site.stop().await;
    let (code, report) = verify(&site, &[]);
    assert_eq!(code, EQUAL, "{report:#}");
    site.at("DFW").update_one(doc! { "_id": "DFW 000001" }, doc! { "$set": { "n": 10 } }).await.unwrap();
    site.at(HUB).delete_one(doc! { "_id": "DFW 000002" }).await.unwrap();
    let (code, report) = verify(&site, &[]);
    assert_eq!((code, &report["findings"]), (CANNOT_TELL, &json!([])), "{report:#}");
    assert!(report["untold"].to_string().contains("nobody carries them"), "{report:#}");
    Hidden::at(&site, "HOU").await.delete("DFW 000003").await;
    let (code, report) = verify(&site, &[]);
    assert_eq!((code, found(&report).len()), (DIFFERENT, 1), "{report:#}");
    site.start().await;
    site.settle().await;
    assert_eq!(verify(&site, &["--repair"]).0, EQUAL);
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_verification_finds_missing_documents_and_may_miss_changed_values() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    fill(&site, "DFW", 2_000).await;
    site.assert_converged().await;
    let (code, report) = verify(&site, &["--quick"]);
    assert_eq!((code, report["documents"].as_u64()), (EQUAL, Some(4_000)), "{report:#}");
    let mut hidden = Hidden::at(&site, "HOU").await;
    let mut changed = whole("DFW 000050", "DFW");
    changed.insert("x", 1.7);
    hidden.put(changed).await;
    // The server's hash does not distinguish these two values of `x`.
    assert_eq!(verify(&site, &["--quick"]).0, EQUAL);
    assert_eq!(verify(&site, &[]).0, DIFFERENT);
    hidden.delete("DFW 000010").await;
    let (code, report) = verify(&site, &["--quick"]);
    assert_eq!(code, DIFFERENT);
    assert_eq!(found(&report).into_keys().collect::<Vec<_>>(), ["HOU DFW 000010"], "{report:#}");
    assert!(report["documents"].as_u64().unwrap() < 3_000, "only buckets that differ are opened: {report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_verifies_on_request_and_shows_the_result() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    fill(&site, "DFW", 300).await;
    site.settle().await;
    let program = site.program.as_ref().unwrap();
    assert_eq!(program.get("/api/v1/verify").unwrap().0, 404);
    assert!(site.status()["verification"].is_null());
    assert_eq!(program.post_json("/api/v1/verify", &json!({ "zoen": "DFW" })).unwrap().0, 400);
    assert_eq!(program.post_json("/api/v1/verify", &json!({ "zone": "NYC" })).unwrap().0, 409);
    assert_eq!(program.post("/api/v1/verify").unwrap().0, 202);
    eventually("the verification is done", async || site.status()["verification"]["state"] == "done").await;
    let shown = site.status()["verification"].clone();
    assert_eq!((shown["documents"].as_u64(), shown["differences"].as_u64()), (Some(600), Some(0)), "{shown}");
    Hidden::at(&site, "HOU").await.delete("DFW 000010").await;
    assert_eq!(program.post_json("/api/v1/verify", &json!({ "spoke": "HOU" })).unwrap().0, 202);
    assert_eq!(program.post("/api/v1/verify").unwrap().0, 409, "only one verification runs at a time");
    eventually("the difference is found", async || site.status()["verification"]["differences"] == 1).await;
    assert_eq!(program.get("/api/v1/verify").unwrap().1["findings"][0]["kind"], "missing");
    let metrics = program.get("/metrics").unwrap().1;
    assert!(metrics.as_str().unwrap().contains("spokesync_verification_differences 1.0"), "{metrics}");
    assert_eq!(program.post_json("/api/v1/verify", &json!({ "spoke": "HOU", "repair": true })).unwrap().0, 202);
    eventually("the difference is repaired", async || {
        site.status()["verification"]["state"] == "done" && site.zone("HOU", 0, "DFW").await.len() == 300
    })
    .await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_that_differ_are_compared_and_repaired_a_few_at_a_time() {
    const DOCUMENTS: i32 = 4;
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    let large = |id: i32, n: i32| {
        let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; 12_000_000] };
        doc! { "_id": id, "_pk": "DFW", "n": n, "bytes": bytes }
    };
    let mut hidden = Hidden::at(&site, "HOU").await;
    for id in 0..DOCUMENTS {
        site.at("DFW").insert_one(large(id, 0)).await.unwrap();
        site.settle().await;
        hidden.put(large(id, 1)).await;
    }
    let program = site.program.as_ref().unwrap();
    assert_eq!(program.post_json("/api/v1/verify", &json!({ "spoke": "HOU", "repair": true })).unwrap().0, 202);
    eventually("the verification is done", async || site.status()["verification"]["state"] == "done").await;
    let told = program.get("/api/v1/verify").unwrap().1;
    assert_eq!(told["repaired"].as_u64(), u64::try_from(DOCUMENTS).ok(), "{told:#}");
    assert!(told["findings"].as_array().unwrap().iter().all(|found| found["paths"] == json!(["n"])), "{told:#}");
    site.assert_converged().await;
}
