//! A hub and many spokes. A few servers play all spokes, with a separate address for each.
//!
//! The crowd shows the cost of spokes for the hub and the program. A server that plays many spokes is far busier than a
//! real spoke, so the crowd does not measure throughput.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bson::{Bson, Document, doc};
use testbed::node::Options;

use super::application::{self, Load};
use super::check;
use super::place::Place;
use super::running::{Awaited, Running, Spoke};
use super::site::Route;
use super::usage::Usage;

/// The hub, the servers that play the spokes, and the program between them.
pub struct Crowd {
    hub: Place,
    players: Vec<Place>,
    running: Option<Running>,
}

/// Addresses in one block of the loopback network.
const ADDRESSES: usize = 250;

/// The zones that the spokes watch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// All spokes watch the same zone.
    Same,
    /// Every spoke watches a different zone.
    Disjoint,
}

impl Watch {
    /// The zone that the spoke with this number watches.
    fn zone(self, number: usize) -> String {
        match self {
            Self::Same => "SHARED".to_owned(),
            Self::Disjoint => format!("Z{number}"),
        }
    }
}

/// The pace of a hub application: one batch per interval.
pub struct Pace {
    /// Documents per batch.
    pub documents: usize,
    /// Size of a document in bytes.
    pub bytes: usize,
    /// Time between two batches.
    pub interval: Duration,
    /// Number of batches.
    pub batches: usize,
}

/// CPU time used during a measurement.
#[derive(Clone, Copy)]
pub struct Spent {
    /// By the hub.
    pub hub: Duration,
    /// By the program.
    pub program: Duration,
}

impl Crowd {
    /// Starts the hub, and this number of servers for the spokes.
    pub async fn prepare(players: usize) -> Result<Self> {
        let options = Options { bind: Some("0.0.0.0".to_owned()), ..Options::default() };
        let starting = (0..players).map(|_| Place::start("spokes", options.clone()));
        let starting = futures_util::future::try_join_all(starting);
        let (hub, players) = tokio::try_join!(Place::start("hub", options.clone()), starting)?;
        Ok(Self { hub, players, running: None })
    }

    /// Restarts the program with this number of spokes.
    pub async fn start(&mut self, spokes: usize, watch: Watch) -> Result<()> {
        self.stop().await?;
        let spoke = |number: usize| Spoke {
            zone: zone(number),
            uri: format!(
                "mongodb://127.0.{}.{}:{}/?directConnection=true",
                1 + number / ADDRESSES,
                1 + number % ADDRESSES,
                self.players[number % self.players.len()].port()
            ),
            watch: vec![watch.zone(number)],
        };
        let spokes: Vec<Spoke> = (1..=spokes).map(spoke).collect();
        self.running = Some(Running::start(&self.hub.uri(), &spokes).await?);
        Ok(())
    }

    /// Stops the program if it runs.
    pub async fn stop(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }

    /// Number of connections open at the hub, with those of the benchmark itself.
    pub async fn connections(&self) -> Result<i32> {
        let status = self.hub.admin().run_command(doc! { "serverStatus": 1 }).await?;
        Ok(status.get_document("connections")?.get_i32("current")?)
    }

    /// CPU time of the hub and the program during a time without writes.
    pub async fn rest(&self, duration: Duration) -> Result<Spent> {
        self.spent(async || {
            tokio::time::sleep(duration).await;
            Ok(())
        })
        .await
    }

    /// CPU time of the hub and the program while a hub application writes at this pace, until every spoke has the
    /// documents of the watched zones.
    pub async fn work(&self, spokes: usize, watch: Watch, pace: &Pace) -> Result<Spent> {
        let zones = if watch == Watch::Same { 1 } else { spokes };
        let loads: Vec<Load> =
            (1..=zones).map(|number| Load::new(&watch.zone(number), pace.documents, pace.bytes)).collect();
        let before = self.applied()?;
        let spent = self.spent(async || {
            let mut interval = tokio::time::interval(pace.interval);
            for number in 0..pace.batches {
                interval.tick().await;
                let batches = loads[number % zones].inserts(number / zones);
                application::write(&self.hub.messages(), &batches).await?;
            }
            self.settle(spokes).await
        });
        let spent = spent.await?;
        for (number, load) in loads.iter().enumerate() {
            let batches = (pace.batches + zones - 1 - number) / zones;
            check::same(&self.route(), &load.filter(), batches * pace.documents).await?;
        }
        let deliveries = pace.batches * pace.documents * if watch == Watch::Same { spokes } else { 1 };
        let applied = self.applied()? - before;
        ensure!(applied == deliveries as u64, "{applied} changes were delivered instead of {deliveries}");
        Ok(spent)
    }

    /// Number of change streams open at the hub, from `$currentOp`.
    pub async fn open_streams(&self) -> Result<usize> {
        let pipeline = [doc! { "$currentOp": { "allUsers": true, "idleCursors": true } }];
        let mut operations = self.hub.admin().aggregate(pipeline).await?;
        let mut streams = 0;
        while operations.advance().await? {
            streams += usize::from(is_stream(&operations.deserialize_current()?));
        }
        Ok(streams)
    }

    /// CPU time and memory of the program.
    pub fn usage(&self) -> Result<Usage> {
        self.running()?.usage()
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the program is not running")
    }

    fn route(&self) -> Route<'_> {
        Route {
            name: "hub → all".to_owned(), zone: "", source: &self.hub, destinations: self.players.iter().collect()
        }
    }

    async fn spent(&self, doing: impl AsyncFnOnce() -> Result<()>) -> Result<Spent> {
        let hub = self.hub.process()?;
        let before = (Usage::of(hub)?.cpu, self.usage()?.cpu);
        doing().await?;
        Ok(Spent { hub: Usage::of(hub)?.cpu - before.0, program: self.usage()?.cpu - before.1 })
    }

    async fn settle(&self, spokes: usize) -> Result<()> {
        let time = self.hub.time().await?;
        let zones: Vec<String> = (1..=spokes).map(zone).collect();
        let awaited: Vec<Awaited<'_>> = zones.iter().map(|zone| Awaited { zone, link: "downlink", time }).collect();
        self.running()?.wait_for(&awaited).await
    }

    /// Number of changes that all downlinks together have applied.
    fn applied(&self) -> Result<u64> {
        let status = self.running()?.status()?;
        let spokes = status["spokes"].as_array().context("the status has no spokes")?;
        Ok(spokes.iter().filter_map(|spoke| spoke["downlink"]["applied_total"].as_u64()).sum())
    }
}

fn zone(number: usize) -> String {
    format!("C{number}")
}

/// True for a running operation or an idle cursor that is a change stream.
fn is_stream(operation: &Document) -> bool {
    let pipeline = || {
        let command = operation.get_document("cursor").ok()?.get_document("originatingCommand").ok()?;
        command.get_array("pipeline").ok()?.first().and_then(Bson::as_document)
    };
    pipeline().is_some_and(|stage| stage.contains_key("$changeStream"))
}
