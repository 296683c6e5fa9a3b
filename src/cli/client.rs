//! Sends requests to the running process, at the address in the configuration.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::config::Config;

/// Time limit of a request. The process answers from memory.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) struct Client {
    agent: ureq::Agent,
    address: String,
    token: Option<SecretString>,
}

impl Client {
    pub(super) fn of(config: &Config) -> Self {
        let mut listen = config.http.listen;
        // A process that listens on all addresses also listens on the loopback address.
        if listen.ip().is_unspecified() {
            listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        let settings = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LIMIT));
        Self { agent: settings.build().new_agent(), address: listen.to_string(), token: config.http.token.clone() }
    }

    /// Sends a GET request, and returns the answer's JSON. Fails if the process does not answer or refuses.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(self.uri(path)).header("authorization", self.authorization());
        self.read(request.call())
    }

    /// Sends a POST request, and returns the answer's JSON. Fails if the process does not answer or refuses.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.uri(path)).header("authorization", self.authorization());
        self.read(request.send_json(body))
    }

    /// Sends a GET request, and returns the answer line by line; an endless answer has no time limit. Fails if the
    /// process does not answer or refuses.
    pub(super) fn lines(&self, path: &str, endless: bool) -> Result<impl BufRead + use<>> {
        let request = self.agent.get(self.uri(path)).header("authorization", self.authorization());
        let limit = (!endless).then_some(LIMIT);
        let answer = request.config().timeout_global(limit).build().call();
        let mut answer = answer.with_context(|| self.advice())?;
        if !answer.status().is_success() {
            let body: Value = answer.body_mut().read_json().unwrap_or_default();
            bail!("{}", body["error"].as_str().unwrap_or("refused without a reason"));
        }
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    fn advice(&self) -> String {
        format!("nothing answers at {}: is `spokesync run` running with this configuration?", self.address)
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn authorization(&self) -> String {
        self.token.as_ref().map_or_else(String::new, |token| format!("Bearer {}", token.expose_secret()))
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let advice =
            || format!("nothing answers at {}: is `spokesync run` running with this configuration?", self.address);
        let mut answer = answer.with_context(advice)?;
        let body: Value =
            answer.body_mut().read_json().with_context(|| format!("{} is not spokesync", self.address))?;
        if !answer.status().is_success() {
            bail!("{}", body["error"].as_str().unwrap_or("refused without a reason"));
        }
        Ok(body)
    }
}

pub(super) fn encode(part: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    part.bytes().map(one).collect()
}
