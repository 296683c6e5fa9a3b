//! `spokesync logs`: prints an actor's log from the running process.

use std::io::BufRead;

use anyhow::Result;
use serde_json::Value;

use super::client::{Client, encode};
use super::shown::shown;
use crate::config::Config;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Actor: coordinator, hub/fanout, DFW/spoke, DFW/reader, DFW/writer, … [default: all actors].
    actor: Option<String>,
    /// Print new lines until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Least level: error, warn, info, debug or trace.
    #[arg(long, default_value = "trace")]
    level: String,
}

pub(super) fn run(config: &Config, options: &Options) -> Result<()> {
    let actor = options.actor.as_ref().map(|actor| format!("actor={}&", encode(actor))).unwrap_or_default();
    let path = format!("/api/v1/logs?{actor}level={}&follow={}", encode(&options.level), options.follow);
    for line in Client::of(config).lines(&path, options.follow)?.lines() {
        let line: Value = serde_json::from_str(&line?)?;
        println!("{}", shown(&show(&line)));
    }
    Ok(())
}

fn show(line: &Value) -> String {
    if let Some(missed) = line["missed"].as_u64() {
        return format!("… {missed} lines missed");
    }
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let generation = line["generation"].as_u64().map(|generation| format!("#{generation}")).unwrap_or_default();
    let mut shown = format!("{} {:>5} {}{generation}: {}", text("time"), text("level"), text("actor"), text("message"));
    for (name, value) in line["fields"].as_object().into_iter().flatten() {
        shown += &format!(" {name}={value}");
    }
    shown
}
