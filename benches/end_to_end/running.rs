//! The program as a separate process, with its configuration.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bson::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use testbed::node::free_port;
use testbed::program::Program;

use super::place::NAMESPACE;
use super::usage::Usage;

/// Time limit for every wait.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Time between two requests of the status: each answer costs the program CPU.
const INTERVAL: Duration = Duration::from_millis(10);

/// A spoke in the configuration.
pub struct Spoke {
    /// The spoke's own zone.
    pub zone: String,
    /// The connection string.
    pub uri: String,
    /// The watched zones.
    pub watch: Vec<String>,
}

/// A link of a spoke, and the cluster time that the link should reach.
pub struct Awaited<'z> {
    /// The spoke's zone.
    pub zone: &'z str,
    /// `uplink` or `downlink`, as in the status.
    pub link: &'static str,
    /// A cluster time of the link's source.
    pub time: Timestamp,
}

/// A running program.
pub struct Running {
    program: Program,
    /// The configuration file.
    pub config: PathBuf,
    _folder: TempDir,
}

impl Running {
    /// Starts the program, and waits until every spoke streams both ways.
    pub async fn start(hub_uri: &str, spokes: &[Spoke]) -> Result<Self> {
        let folder = TempDir::new()?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut text = format!("[hub]\nuri = {hub_uri:?}\n[sync]\nnamespaces = [{NAMESPACE:?}]\n");
        // One server may play many spokes.
        writeln!(text, "allow_shared_replica_sets = true")?;
        writeln!(text, "[http]\nlisten = {address:?}")?;
        for Spoke { zone, uri, watch } in spokes {
            writeln!(text, "[[spoke]]\nzone = {zone:?}\nuri = {uri:?}\nwatch = {watch:?}")?;
        }
        let config = folder.path().join("spokes.toml");
        std::fs::write(&config, text)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.arg("run").arg("--config").arg(&config);
        let mut program = Program::start(&command, &address, &folder.path().join("log"))?;
        program.ready(LIMIT).await?;
        Ok(Self { program, config, _folder: folder })
    }

    /// Stops the program as an operator does, with SIGTERM.
    pub async fn stop(mut self) -> Result<()> {
        let exit = self.program.stop(Signal::SIGTERM, LIMIT).await?;
        ensure!(exit == Some(0), "the program ended with {exit:?}; the log:\n{}", self.program.log());
        Ok(())
    }

    /// CPU time and memory of the program so far.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.program.process().id())
    }

    /// The program's status.
    pub fn status(&self) -> Result<Value> {
        self.program.status()
    }

    /// Waits until every link has reached the awaited time.
    pub async fn wait_for(&self, awaited: &[Awaited<'_>]) -> Result<()> {
        let have_come = |status: &Value| awaited.iter().all(|awaited| position(status, awaited) >= Some(awaited.time));
        self.wait_until("every change has arrived", have_come).await
    }

    /// Requests a resync of a spoke, and waits until both links have compared all documents.
    pub async fn resync(&self, zone: &str) -> Result<()> {
        let (code, answer) = self.program.post(&format!("/api/v1/spokes/{zone}/resync"))?;
        ensure!(code == 202, "{code} {answer}");
        // The answer may come before the links know of the request.
        let compares = |status: &Value| links(status, zone).any(|link| link["comparing"] == true);
        self.wait_until("a comparison begins", compares).await?;
        self.wait_until("everything is compared", |status| links(status, zone).all(|link| link["comparing"] == false))
            .await
    }

    async fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.status()?;
            if is_so(&status) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("timed out waiting until {what}: {status}; the log:\n{}", self.program.log());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

fn spoke<'s>(status: &'s Value, zone: &str) -> Option<&'s Value> {
    status["spokes"].as_array()?.iter().find(|spoke| spoke["zone"] == zone)
}

fn links<'s>(status: &'s Value, zone: &str) -> impl Iterator<Item = &'s Value> {
    let spoke = spoke(status, zone);
    ["uplink", "downlink"].into_iter().filter_map(move |link| spoke.map(|spoke| &spoke[link]))
}

fn position(status: &Value, awaited: &Awaited<'_>) -> Option<Timestamp> {
    let position = spoke(status, awaited.zone)?[awaited.link]["position"].as_str()?;
    let (time, increment) = position.split_once('.')?;
    Some(Timestamp { time: time.parse().ok()?, increment: increment.parse().ok()? })
}
