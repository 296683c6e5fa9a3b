//! spokesync as a separate process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::Process;

/// A running spokesync. Drop kills the process.
#[derive(Debug)]
pub struct Program {
    process: Process,
    address: String,
    log: PathBuf,
}

impl Program {
    /// Starts the command, which must make spokesync listen on `address`. The output is appended to `log`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(command: &Command, address: &str, log: &Path) -> Result<Self> {
        let process = Process::start(command, log)?;
        Ok(Self { process, address: address.to_owned(), log: log.to_owned() })
    }

    /// Sends a `GET` to a path. Returns the status code, and the body as JSON, or as a string if the body is no JSON.
    ///
    /// # Errors
    /// If the program does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.get_with_token(path, "")
    }

    /// The same, with a bearer token.
    ///
    /// # Errors
    /// If the program does not answer.
    pub fn get_with_token(&self, path: &str, token: &str) -> Result<(u16, Value)> {
        let request = agent().get(format!("http://{}{path}", self.address));
        read(request.header("authorization", format!("Bearer {token}")).call().context("no answer")?)
    }

    /// Sends a `POST` without a body. Returns the same as [`Program::get`].
    ///
    /// # Errors
    /// If the program does not answer.
    pub fn post(&self, path: &str) -> Result<(u16, Value)> {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.send_empty().context("no answer")?)
    }

    /// Sends a `POST` with a JSON body. Returns the same as [`Program::get`].
    ///
    /// # Errors
    /// If the program does not answer.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = agent().post(format!("http://{}{path}", self.address));
        read(request.send_json(body).context("no answer")?)
    }

    /// The body of `/api/v1/status`.
    ///
    /// # Errors
    /// If the program does not answer.
    pub fn status(&self) -> Result<Value> {
        Ok(self.get("/api/v1/status")?.1)
    }

    /// Waits until `/readyz` answers 200, when every spoke streams both ways.
    ///
    /// # Errors
    /// If the wait takes longer than `limit`, or the program ends.
    pub async fn ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.get("/readyz");
            if answer.as_ref().is_ok_and(|(code, _)| *code == 200) {
                return Ok(());
            }
            if let Some(exit) = self.process.exit()? {
                bail!("the program ended with {exit:?}; the log:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("not ready within {limit:?}: {answer:?}; the log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal, and waits for the program's end. Returns the exit code, or `None` after an end by a signal.
    ///
    /// # Errors
    /// If the wait takes longer than `limit`.
    pub async fn stop(&mut self, signal: Signal, limit: Duration) -> Result<Option<i32>> {
        self.process.signal(signal)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(exit) = self.process.exit()? {
                return Ok(exit);
            }
            if Instant::now() > deadline {
                bail!("the program did not end within {limit:?}; the log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the program without warning, like a power cut.
    ///
    /// # Errors
    /// If the program cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// The program's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The program's output so far.
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
