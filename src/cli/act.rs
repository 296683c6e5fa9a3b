//! `spokesync pause|resume|restart|resync ZONE`: sends a command for one spoke to the running process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::{Client, encode};
use super::progress::Progress;
use crate::config::Config;

/// Interval of the requests for the progress of a resync.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time after which another process has reported a resync that it was asked for, with the default lease.
const REPORTED: Duration = Duration::from_secs(6);

pub(super) fn run(config: &Config, action: &str, zone: &str) -> Result<()> {
    Client::of(config).post(&format!("/api/v1/spokes/{}/{action}", encode(zone)), &json!({}))?;
    println!("spoke {zone}: {action} accepted");
    Ok(())
}

/// Waits until both links of a spoke have finished a resync.
pub(super) fn wait_for_resync(config: &Config, zone: &str) -> Result<()> {
    let client = Client::of(config);
    let mut progress = Progress::new();
    let asked = Instant::now();
    loop {
        let status = client.get("/api/v1/status")?;
        let spokes = status["spokes"].as_array().into_iter().flatten();
        let spoke = spokes
            .into_iter()
            .find(|spoke| spoke["zone"] == zone)
            .with_context(|| format!("there is no spoke {zone}"))?;
        let links = ["uplink", "downlink"].map(|name| (name, &spoke[name]));
        // Another process that runs the spoke reports with its heartbeats, and nobody does while the spoke moves.
        let is_comparing = match (spoke["state"] == "standby", &spoke["elsewhere"]["comparing"]) {
            (true, Value::Bool(false)) => asked.elapsed() < REPORTED,
            (true, _) => true,
            (false, _) => links.iter().any(|(_, link)| link["comparing"] == true),
        };
        if !is_comparing {
            progress.end();
            println!("spoke {zone}: resync finished");
            return Ok(());
        }
        for (name, link) in links {
            if let Some((what, documents, estimated)) = copying(zone, name, &link["copying"]) {
                progress.show(&what, documents, estimated);
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Describes the copy under way on a link: zone and collection, documents done, estimated total.
pub(super) fn copying(spoke: &str, link: &str, copying: &Value) -> Option<(String, u64, Option<u64>)> {
    let (ns, zone) = (copying["ns"].as_str()?, copying["zone"].as_str()?);
    Some((
        format!("{spoke} {link}: {ns} zone {zone}"),
        copying["documents"].as_u64()?,
        copying["documents_estimated"].as_u64(),
    ))
}
