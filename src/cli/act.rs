//! `spokesync pause|resume|restart|resync ZONE`: acts on one spoke of the running process.

use anyhow::Result;
use serde_json::json;

use super::client::{Client, encode};
use crate::config::Config;

pub(super) fn run(config: &Config, action: &str, zone: &str) -> Result<()> {
    Client::of(config).post(&format!("/api/v1/spokes/{}/{action}", encode(zone)), &json!({}))?;
    println!("spoke {zone}: {action} accepted");
    Ok(())
}
