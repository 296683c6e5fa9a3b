//! More changes at the same time than a queue, a reply or a transaction holds.

use std::time::Duration;

use bson::{Bson, doc};
use testbed::node::Options;

use super::support::site::HUB;
use super::support::{Site, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_larger_than_the_queue_detaches_no_spoke_whose_writer_is_at_work() {
    let mut site = Site::own(&[("BOS", &["SHARED"])], Options::default()).await;
    site.start().await;
    // More than twice the capacity of the spoke's queue.
    for start in (0..120_000).step_by(10_000) {
        let documents = (start..start + 10_000).map(|id| doc! { "_id": id, "_pk": "SHARED" });
        site.at(HUB).insert_many(documents).await.unwrap();
    }
    eventually("BOS has all documents", async || site.at("BOS").estimated_document_count().await.unwrap() == 120_000)
        .await;
    assert!(!site.log().contains("does not keep up"), "{}", site.log());
    assert_eq!(site.status()["hub"]["open_streams"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_hub_closes_while_the_fan_out_waits_goes_on_where_it_was() {
    let mut site = Site::own(&[("BOS", &["SHARED"])], Options::default()).await;
    site.start().await;
    site.nodes["BOS"].freeze().unwrap();
    for start in (0..120_000).step_by(10_000) {
        let documents = (start..start + 10_000).map(|id| doc! { "_id": id, "_pk": "SHARED" });
        site.at(HUB).insert_many(documents).await.unwrap();
    }
    // As long as the fan-out reads, the content of BOS's queue changes. So an unchanged queue shows that the fan-out
    // waits.
    let waiting = || site.spoke_status("BOS")["queue"].clone();
    let mut former = serde_json::Value::Null;
    eventually("the fan-out waits", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = waiting();
        std::mem::replace(&mut former, now.clone()) == now && now["events"].as_u64().is_some_and(|events| events > 0)
    })
    .await;
    site.client(HUB).database("admin").run_command(doc! { "killAllSessions": [] }).await.unwrap();
    site.nodes["BOS"].thaw().unwrap();
    eventually("BOS has all documents", async || site.at("BOS").estimated_document_count().await.unwrap() == 120_000)
        .await;
    site.at(HUB).insert_one(doc! { "_id": "late", "_pk": "SHARED" }).await.unwrap();
    site.settle().await;
    site.assert_converged().await;
    assert_eq!(site.status()["hub"]["open_streams"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_and_small_ones_in_turn_arrive_whole_and_in_order() {
    let mut site = Site::own(&[("DFW", &[]), ("HOU", &["DFW"])], Options::default()).await;
    site.start().await;
    let messages = site.at("DFW");
    for round in 0..2 {
        // The first replies have 16 MB, and the later ones fewer documents.
        let large = (0..400).map(|id| doc! { "_id": format!("large {id}"), "_pk": "DFW", "text": "x".repeat(100_000) });
        if round == 0 {
            messages.insert_many(large).await.unwrap();
        } else {
            for document in large {
                let id: Bson = document["_id"].clone();
                messages.replace_one(doc! { "_id": id }, document).await.unwrap();
            }
        }
        let small = (0..20_000).map(|id| doc! { "_id": format!("small {round} {id}"), "_pk": "DFW", "n": id });
        messages.insert_many(small).await.unwrap();
        messages.update_many(doc! {}, doc! { "$inc": { "n": round + 1 } }).await.unwrap();
    }
    site.settle().await;
    site.assert_converged().await;
    assert_eq!(site.at("HOU").estimated_document_count().await.unwrap(), 40_400);
}
