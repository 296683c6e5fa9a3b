//! Writes vehicle messages to one MongoDB, as an application in an edge zone does: inserts, updates, deletes, and
//! occasionally a document without partition key.
//!
//! ```text
//! cargo run --release --example vehicles -- --uri mongodb://127.0.0.1:27101/?replicaSet=dfw --zone DFW --rate 50
//! ```

use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use clap::Parser;
use mongodb::{Client, Collection};
use rand::Rng;

/// Writes vehicle messages, until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// The connection string of the zone's replica set.
    #[arg(long)]
    uri: String,
    /// The zone.
    #[arg(long)]
    zone: String,
    /// Changes per second.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// The collection, as database.collection.
    #[arg(long, default_value = "messages.messages")]
    namespace: String,
}

/// The newest messages of this run, which may still be changed or deleted.
const RECENT: usize = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (database, collection) = arguments
        .namespace
        .split_once('.')
        .ok_or_else(|| anyhow::anyhow!("--namespace {} is not database.collection", arguments.namespace))?;
    anyhow::ensure!(arguments.rate > 0.0, "--rate must be more than 0");
    let client = Client::with_uri_str(&arguments.uri).await?;
    let messages = client.database(database).collection(collection);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / arguments.rate));
    let mut recent: Vec<Bson> = Vec::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => change(&messages, &arguments.zone, &mut recent).await?,
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        }
    }
}

/// Makes one change. Seven of ten are new messages.
async fn change(messages: &Collection<Document>, zone: &str, recent: &mut Vec<Bson>) -> mongodb::error::Result<()> {
    let (kind, some) = {
        let mut rng = rand::rng();
        (rng.random_range(0..20), rng.random_range(0..RECENT))
    };
    let some = if recent.is_empty() { None } else { Some(some % recent.len()) };
    match (kind, some) {
        (14..19, Some(some)) => {
            let update = doc! { "$set": { "speed": speed(), "seen_at": DateTime::now() }, "$inc": { "updates": 1 } };
            messages.update_one(doc! { "_id": recent[some].clone() }, update).await?;
        }
        (19, Some(some)) => {
            messages.delete_one(doc! { "_id": recent.swap_remove(some) }).await?;
        }
        (kind, _) => {
            let stored = messages.insert_one(message(zone, kind == 0)).await?;
            if recent.len() == RECENT {
                recent.remove(0);
            }
            recent.push(stored.inserted_id);
        }
    }
    Ok(())
}

/// A message of about half a kilobyte.
fn message(zone: &str, unstamped: bool) -> Document {
    let mut rng = rand::rng();
    let kind = ["position", "engine", "door", "fuel"][rng.random_range(0..4)];
    let mut message = doc! {
        "vehicle": format!("{zone}-{:04}", rng.random_range(0..500)),
        "type": kind,
        "seen_at": DateTime::now(),
        "position": { "type": "Point", "coordinates": [rng.random_range(-98.0..-70.0), rng.random_range(29.0..43.0)] },
        "speed": speed(),
        "payload": "x".repeat(250),
    };
    if !unstamped {
        message.insert("_pk", zone);
    }
    message
}

fn speed() -> f64 {
    rand::rng().random_range(0.0..75.0)
}
