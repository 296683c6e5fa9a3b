//! The servers that are measured, and the program between them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, Timestamp, doc};
use mongodb::{Client, Collection};
use tempfile::TempDir;
use testbed::node::{Node, Options, free_port};
use testbed::program::Program;
use testbed::proxy::{Proxy, Wire};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The zone that applications write in. The other spokes watch it.
pub const SOURCE: &str = "SRC";

/// One server.
pub struct Place {
    /// `hub`, or the zone that the spoke owns.
    pub name: String,
    node: Node,
    client: Client,
}

impl Place {
    async fn start(name: &str) -> Result<Self> {
        let node = Node::start(name, Options::default()).await?;
        let client = node.client().await?;
        Ok(Self { name: name.to_owned(), node, client })
    }

    /// The collection that is kept in step.
    pub fn messages(&self) -> Collection<Document> {
        self.client.database("bench").collection("messages")
    }

    /// A collection that spokesync does not look at.
    pub fn floor(&self) -> Collection<Document> {
        self.client.database("floor").collection("messages")
    }

    async fn time(&self) -> Result<Timestamp> {
        let reply = self.client.database("admin").run_command(doc! { "ping": 1 }).await?;
        Ok(reply.get_timestamp("operationTime")?)
    }
}

/// A hub, the spoke of [`SOURCE`], and spokes that watch it.
pub struct Site {
    /// The hub.
    pub hub: Place,
    /// The spoke that applications write at.
    pub source: Place,
    /// The spokes that watch it.
    pub watchers: Vec<Place>,
    /// The program.
    pub program: Program,
    /// Its configuration.
    pub config: PathBuf,
    wires: Vec<Proxy>,
    _folder: TempDir,
}

impl Site {
    /// Starts everything, with so many watching spokes.
    pub async fn start(watchers: usize) -> Result<Self> {
        Self::start_by(watchers, false).await
    }

    /// The same, where the program reaches its spokes by wires that can be made slow.
    pub async fn start_by_wires(watchers: usize) -> Result<Self> {
        Self::start_by(watchers, true).await
    }

    /// From now on the wires do this.
    pub fn set_wires(&self, wire: Wire) {
        self.wires.iter().for_each(|proxy| proxy.set(wire));
    }

    /// How many bytes the wires have carried.
    pub fn wire_bytes(&self) -> u64 {
        self.wires.iter().map(Proxy::bytes).sum()
    }

    async fn start_by(watchers: usize, by_wires: bool) -> Result<Self> {
        let watching = (1..=watchers).map(async |number| Place::start(&format!("W{number}")).await);
        let watching = futures_util::future::try_join_all(watching);
        let (hub, source, watchers) = tokio::try_join!(Place::start("hub"), Place::start(SOURCE), watching)?;
        let folder = TempDir::new()?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut text = format!("[hub]\nuri = {:?}\n", hub.node.uri());
        write!(text, "[sync]\nnamespaces = [\"bench.messages\"]\n[http]\nlisten = {address:?}\n")?;
        let mut wires = Vec::new();
        for place in std::iter::once(&source).chain(&watchers) {
            let mut uri = place.node.uri();
            if by_wires {
                let wire = Proxy::to(place.node.port()).await?;
                uri = wire.uri();
                wires.push(wire);
            }
            let watch = if place.name == SOURCE { "" } else { SOURCE };
            write!(text, "[[spoke]]\nzone = {:?}\nuri = {uri:?}\n", place.name)?;
            if !watch.is_empty() {
                writeln!(text, "watch = [{watch:?}]")?;
            }
        }
        let config = folder.path().join("spokes.toml");
        std::fs::write(&config, text)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.arg("run").arg("--config").arg(&config);
        let mut program = Program::start(&command, &address, &folder.path().join("log"))?;
        program.ready(Duration::from_secs(60)).await?;
        Ok(Self { hub, source, watchers, program, config, wires, _folder: folder })
    }

    /// Every server that the source's changes go to.
    pub fn destinations(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.hub).chain(&self.watchers)
    }

    /// Waits until all that the source holds now is at every destination.
    pub async fn settle(&self) -> Result<()> {
        self.wait_for(SOURCE, "uplink", self.source.time().await?).await?;
        let now = self.hub.time().await?;
        for place in &self.watchers {
            self.wait_for(&place.name, "downlink", now).await?;
        }
        Ok(())
    }

    async fn wait_for(&self, zone: &str, link: &str, time: Timestamp) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.program.status()?;
            let spokes = status["spokes"].as_array().context("spokes")?;
            let spoke = spokes.iter().find(|spoke| spoke["zone"] == zone).context("the spoke")?;
            let position = spoke[link]["position"].as_str().and_then(|position| position.split_once('.'));
            let position = position.and_then(|(time, increment)| {
                Some(Timestamp { time: time.parse().ok()?, increment: increment.parse().ok()? })
            });
            if position >= Some(time) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{zone}'s {link} does not come to {time}: {spoke}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the program has used so far.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.program.process().id())
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// The most memory that it had at once, in bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// What the process with this number has used so far.
    pub fn of(process: u32) -> Result<Self> {
        const TICKS_PER_SECOND: u64 = 100;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the name, which may hold anything but ends with the last parenthesis: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { cpu: Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND), peak_memory: kilobytes * 1_024 })
    }
}
