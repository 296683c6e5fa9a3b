//! Several processes that share the spokes: how long a spoke is away after a kill, a freeze and a stop, and what the
//! leases cost.
//!
//! A takeover is measured at the hub: from the moment in which a process ends until a document that was written at each
//! of its spokes afterwards is at the hub.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use testbed::node::{Options, free_port};
use testbed::program::Program;

use super::figures::{Figure, median, percentile};
use super::parts::Parts;
use super::place::{NAMESPACE, Place, majority};
use super::running::LIMIT;

/// Spokes that the processes share, and processes.
const SPOKES: usize = 9;
const PROCESSES: usize = 3;

/// Takeovers of each kind.
const ROUNDS: usize = 20;

/// Spokes for the cost of the leases. No server is behind them: a lease does not ask whether its spoke can be reached.
const MANY: usize = 1_000;

/// Duration of the measurement of that cost.
const REST: Duration = Duration::from_secs(20);

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    Freeze,
    Stop,
}

/// Measures takeovers, and the cost of the leases.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let options = Options { bind: Some("0.0.0.0".to_owned()), ..Options::default() };
    let (hub, player) =
        tokio::try_join!(Place::start("hub", options.clone()), Place::start("spokes", options.clone()))?;
    let address = |number: usize| format!("mongodb://127.0.1.{number}:{}/?directConnection=true", player.port());
    let mut cluster = Cluster::prepare(&hub, &player, SPOKES, address)?;
    cluster.fill().await?;
    let rounds = parts.share_of(ROUNDS, 2);
    let mut figures = Vec::new();
    for (end, name, goal) in [
        (End::Kill, "from SIGKILL until the spokes stream elsewhere", 10.0),
        (End::Freeze, "from SIGSTOP until the spokes stream elsewhere", 10.0),
        (End::Stop, "from SIGTERM until the spokes stream elsewhere", 1.5),
    ] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(cluster.take_over(end).await?.as_secs_f64());
        }
        figures.push(Figure::plain(&format!("{name}, median of {rounds}"), "s", median(&mut times)));
        figures.push(Figure::at_most(&format!("{name}, worst"), "s", percentile(&mut times, 1.0), goal));
    }
    drop(cluster);
    figures.push(leases(&hub, &player, parts).await?);
    Ok(figures)
}

/// The hub's writes for the leases of many spokes on three processes.
async fn leases(hub: &Place, player: &Place, parts: &Parts) -> Result<Figure> {
    let spokes = parts.share_of(MANY, 10);
    // Nobody listens at port 1.
    let address =
        |number: usize| format!("mongodb://127.1.{}.{}:1/?directConnection=true", number / 250, 1 + number % 250);
    let mut cluster = Cluster::prepare(hub, player, spokes, address)?;
    for _ in 0..PROCESSES {
        cluster.start()?;
    }
    cluster
        .wait("the spokes are shared", |shares| shares.iter().all(|share| share.len().abs_diff(spokes / 3) <= 1))
        .await?;
    let before = lease_writes(hub).await?;
    tokio::time::sleep(REST).await;
    let writes = (lease_writes(hub).await? - before) as f64 / REST.as_secs_f64();
    Ok(Figure::at_most(&format!("writes for the leases of {spokes} spokes"), "a second", writes, 10.0))
}

/// Writes so far to members and leases, by the hub's own count.
async fn lease_writes(hub: &Place) -> Result<i64> {
    let top = hub.admin().run_command(doc! { "top": 1 }).await?;
    let totals = top.get_document("totals")?;
    let mut writes = 0;
    for collection in ["members", "leases"] {
        let Ok(of) = totals.get_document(format!("_syncmetadata.{collection}")) else { continue };
        for kind in ["insert", "update", "remove"] {
            let count = of.get_document(kind)?.get("count").context("no count")?;
            writes += count.as_i64().or(count.as_i32().map(i64::from)).context("no number")?;
        }
    }
    Ok(writes)
}

/// The processes that share the spokes.
struct Cluster<'c> {
    hub: &'c Place,
    player: &'c Place,
    spokes: usize,
    folder: TempDir,
    /// The connection strings of the spokes.
    text: String,
    programs: Vec<Program>,
    /// Numbers the processes and the documents.
    number: usize,
}

impl<'c> Cluster<'c> {
    fn prepare(hub: &'c Place, player: &'c Place, spokes: usize, address: impl Fn(usize) -> String) -> Result<Self> {
        let mut text = format!("[hub]\nuri = {:?}\n[sync]\nnamespaces = [{NAMESPACE:?}]\n", hub.uri());
        text += "allow_shared_replica_sets = true\n[log]\nlevel = \"warn\"\n";
        for number in 1..=spokes {
            text += &format!("[[spoke]]\nzone = {:?}\nuri = {:?}\n", zone(number), address(number));
        }
        Ok(Self { hub, player, spokes, folder: TempDir::new()?, text, programs: Vec::new(), number: 0 })
    }

    /// Starts one more process.
    fn start(&mut self) -> Result<()> {
        self.number += 1;
        let address = format!("127.0.0.1:{}", free_port()?);
        let path = |ending: &str| -> PathBuf { self.folder.path().join(format!("{}.{ending}", self.number)) };
        std::fs::write(path("toml"), format!("{}[http]\nlisten = {address:?}\n", self.text))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.arg("run").arg("--config").arg(path("toml"));
        self.programs.push(Program::start(&command, &address, &path("log"))?);
        Ok(())
    }

    /// Starts processes until there are enough, and waits until each runs its share.
    async fn fill(&mut self) -> Result<()> {
        while self.programs.len() < PROCESSES {
            self.start()?;
        }
        self.wait("each process runs its share", |shares| shares.iter().all(|share| share.len() == SPOKES / PROCESSES))
            .await?;
        let all: BTreeSet<String> = (1..=self.spokes).map(zone).collect();
        self.write_and_wait(&all).await
    }

    /// Ends the first process, and returns the time until its spokes stream elsewhere. Fills the cluster up again.
    async fn take_over(&mut self, end: End) -> Result<Duration> {
        let mut ending = self.programs.remove(0);
        let zones = held(&ending).context("it runs no spoke")?;
        let began = Instant::now();
        match end {
            End::Kill => ending.kill()?,
            End::Freeze => ending.process().signal(Signal::SIGSTOP)?,
            End::Stop => ending.process().signal(Signal::SIGTERM)?,
        }
        self.write_and_wait(&zones).await?;
        let took = began.elapsed();
        drop(ending);
        self.fill().await?;
        Ok(took)
    }

    /// Writes a document in each zone at its spoke, and waits until all are at the hub.
    async fn write_and_wait(&mut self, zones: &BTreeSet<String>) -> Result<()> {
        self.number += 1;
        let id = |zone: &String| format!("{zone} {}", self.number);
        let documents = zones.iter().map(|zone| doc! { "_id": id(zone), "_pk": zone });
        majority(&self.player.messages()).insert_many(documents).await?;
        let wanted = doc! { "_id": { "$in": zones.iter().map(id).collect::<Vec<_>>() } };
        let hub = self.hub.messages().clone_with_type::<Document>();
        let deadline = Instant::now() + LIMIT;
        while hub.count_documents(wanted.clone()).await? < zones.len() as u64 {
            if Instant::now() > deadline {
                bail!("timed out waiting for the documents of {zones:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn wait(&self, what: &str, is_so: impl Fn(&[BTreeSet<String>]) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let shares: Vec<BTreeSet<String>> =
                self.programs.iter().map(|program| held(program).unwrap_or_default()).collect();
            if is_so(&shares) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("timed out waiting until {what}: {shares:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn zone(number: usize) -> String {
    format!("C{number}")
}

/// The zones that the process runs.
fn held(program: &Program) -> Result<BTreeSet<String>> {
    let status = program.status()?;
    let spokes = status["spokes"].as_array().context("the status has no spokes")?;
    let own = spokes.iter().filter(|spoke| spoke["state"] != "standby");
    let is_known = status["cluster"]["members"].as_array().is_some_and(|members| !members.is_empty());
    Ok(own.filter(|_| is_known).filter_map(|spoke| spoke["zone"].as_str()).map(str::to_owned).collect())
}
