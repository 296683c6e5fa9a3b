//! spokesync itself, as a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::Process;

/// A running spokesync. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    process: Process,
    address: String,
    log: PathBuf,
}

impl Program {
    /// Runs the command, which must make it listen on this address. What it writes goes to the end of `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &Command, address: &str, log: &Path) -> Result<Self> {
        let process = Process::start(command, log)?;
        Ok(Self { process, address: address.to_owned(), log: log.to_owned() })
    }

    /// What it answers on a path: the status code, and the body as JSON, or as a text if it is none.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.get_with_token(path, "")
    }

    /// The same, for a caller who brings a token.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn get_with_token(&self, path: &str, token: &str) -> Result<(u16, Value)> {
        let request = agent().get(format!("http://{}{path}", self.address));
        read(request.header("authorization", format!("Bearer {token}")).call().context("no answer")?)
    }

    /// What it answers to a `POST` without a body.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn post(&self, path: &str) -> Result<(u16, Value)> {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.send_empty().context("no answer")?)
    }

    /// What it answers to a `POST` of this.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.send_json(body).context("no answer")?)
    }

    /// Its status.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<Value> {
        Ok(self.get("/api/v1/status")?.1)
    }

    /// Waits until every spoke streams both ways.
    ///
    /// # Errors
    /// If that takes longer than `limit`, or it ends.
    pub async fn ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.get("/readyz");
            if answer.as_ref().is_ok_and(|(code, _)| *code == 200) {
                return Ok(());
            }
            if let Some(exit) = self.process.exit()? {
                bail!("it ended with {exit:?}; its log:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("not ready within {limit:?}: {answer:?}; its log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to end, and waits for that. Tells its exit code.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn stop(&mut self, signal: Signal, limit: Duration) -> Result<Option<i32>> {
        self.process.signal(signal)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(exit) = self.process.exit()? {
                return Ok(exit);
            }
            if Instant::now() > deadline {
                bail!("it does not end within {limit:?}; its log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as a power cut does.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(5))).build().new_agent()
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<(u16, Value)> {
    let code = answer.status().as_u16();
    let body = answer.body_mut().read_to_string().context("no body")?;
    Ok((code, serde_json::from_str(&body).unwrap_or(Value::String(body))))
}
