//! The program ends where the model of the rules ends: traces of the model (src/rules/crossings/traces.rs), replayed.
//!
//! All traces are replayed side by side, each with a document of its own. Which link is quicker is left to chance, so a
//! trace may have several ends.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use crate::support::site::HUB;
use crate::support::{Site, eventually};

/// The watched zones of the model.
const MODEL: &[(&str, &[&str])] = &[("DFW", &["HOU"]), ("HOU", &[])];

const SITES: [&str; 3] = [HUB, "DFW", "HOU"];

/// Time for every trace to end as expected.
const REST: Duration = Duration::from_secs(40);

/// Further replays of traces that did not end as expected.
const REPETITIONS: usize = 2;

/// As in the test of the promise, chance decides how the links interleave: a fault must show in every replay.
#[tokio::test(flavor = "multi_thread")]
async fn crossing_writes_end_as_the_model_of_the_rules_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crossings.json");
    let mut traces: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut told = Vec::new();
    for _ in 0..=REPETITIONS {
        let others = replay(&traces).await;
        if others.is_empty() {
            return;
        }
        (traces, told) = others.into_iter().unzip();
        eprintln!("not as the model says:\n{}", told.join("\n"));
    }
    panic!("{}", told.join("\n"));
}

/// Replays traces side by side. Returns those that end as the model does not, with what they end as.
async fn replay(traces: &[Value]) -> Vec<(Value, String)> {
    let mut site = Site::shared(MODEL).await;
    site.start().await;
    for (number, trace) in traces.iter().enumerate() {
        let Some(zone) = trace["begin"].as_str() else { continue };
        let owner = if SITES.contains(&zone) { zone } else { HUB };
        site.at(owner).insert_one(doc! { "_id": id(number), "_pk": zone, "value": 0_i64 }).await.unwrap();
    }
    site.settle().await;
    site.assert_converged().await;
    for (zone, _) in MODEL {
        ask(&site, zone, "pause");
        eventually("the spoke is paused", async || site.spoke_status(zone)["state"] == "paused").await;
    }
    for (number, trace) in traces.iter().enumerate() {
        for name in SITES {
            for write in trace["writes"][name].as_array().unwrap() {
                apply(&site, name, number, write).await;
            }
        }
    }
    for (zone, _) in MODEL {
        ask(&site, zone, "resume");
    }
    site.ready().await;
    let deadline = Instant::now() + REST;
    loop {
        for (zone, _) in MODEL {
            drop(site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/dead-letters/retry")));
        }
        site.settle().await;
        let others = unexpected(&site, traces).await;
        if others.is_empty() || Instant::now() > deadline {
            site.stop().await;
            return others;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn id(trace: usize) -> String {
    format!("trace-{trace}")
}

fn trace(id: &str) -> usize {
    id.strip_prefix("trace-").unwrap().parse().unwrap()
}

fn ask(site: &Site, zone: &str, what: &str) {
    site.program.as_ref().unwrap().post(&format!("/api/v1/spokes/{zone}/{what}")).unwrap();
}

/// An application's write: the document as it is afterwards, or `null` for a delete.
async fn apply(site: &Site, name: &str, trace: usize, write: &Value) {
    let (documents, filter) = (site.at(name), doc! { "_id": id(trace) });
    let Some(after) = write.as_array() else {
        documents.delete_one(filter).await.unwrap();
        return;
    };
    let fields = doc! { "_pk": after[0].as_str().unwrap(), "value": after[1].as_i64().unwrap() };
    documents.update_one(filter, doc! { "$set": fields }).upsert(true).await.unwrap();
}

/// The traces that end as the model does not, with their ends.
async fn unexpected(site: &Site, traces: &[Value]) -> Vec<(Value, String)> {
    let mut ends = vec![json!({}); traces.len()];
    let mut letters = vec![BTreeSet::new(); traces.len()];
    for name in SITES {
        let mut there = site.at(name).find(doc! {}).await.unwrap();
        ends.iter_mut().for_each(|end| end[name] = Value::Null);
        while let Some(document) = there.try_next().await.unwrap() {
            let number = trace(document.get_str("_id").unwrap());
            ends[number][name] = json!([document.get_str("_pk").unwrap(), document.get_i64("value").unwrap()]);
        }
        let open: Vec<Document> =
            site.own_collection(name, "dead_letters").find(doc! {}).await.unwrap().try_collect().await.unwrap();
        for letter in open {
            let key = letter.get_document("_id").unwrap();
            letters[trace(key.get_str("document").unwrap())].insert(key.get_str("link").unwrap().to_owned());
        }
    }
    let ended = ends.into_iter().zip(letters).zip(traces).enumerate();
    ended
        .filter_map(|(number, ((mut end, letters), trace))| {
            end["letters"] = json!(letters);
            let is_expected = trace["ends"].as_array().unwrap().contains(&end);
            (!is_expected).then(|| (trace.clone(), format!("{number} ended as {end}: {trace}")))
        })
        .collect()
}
