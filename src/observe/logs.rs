//! The log: lines with the actor that they are about.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{Log, LogFormat};

/// Starts logging to standard error. Libraries speak only if they warn.
pub fn start(log: &Log) {
    let filter = EnvFilter::new(format!("warn,spokesync={}", log.level));
    let colours = std::io::stderr().is_terminal();
    let console = match log.format {
        LogFormat::Text => fmt::layer().with_ansi(colours).with_target(false).with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().with_target(false).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(console.with_filter(filter)).init();
}
