//! The parts to measure, and their amount of work.
//!
//! `BENCH_ONLY=latency,inserts` names the parts; the default is all. `BENCH_WORK=0.05` does a twentieth of the work,
//! which shows that everything runs, and gives no figures worth keeping. `BENCH_SPOKES=1,3` sets the numbers of spokes
//! for throughput.

use anyhow::{Context, Result, bail, ensure};

const NAMES: [&str; 17] = [
    "inserts",
    "updates",
    "deletes",
    "mix",
    "latency",
    "wire",
    "bytes",
    "initial",
    "catch-up",
    "reconcile",
    "verify",
    "refill",
    "small",
    "scale",
    "thousand",
    "cluster",
    "reference",
];

/// The requested parts.
pub struct Parts {
    /// Numbers of spokes that watch the hub application's zone, with one measurement of throughput for each number.
    pub fan_outs: Vec<usize>,
    only: Vec<String>,
    work: f64,
}

impl Parts {
    /// Reads the requested parts from the environment.
    pub fn asked() -> Result<Self> {
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        let only: Vec<String> =
            only.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &only {
            if !NAMES.contains(&name.as_str()) {
                bail!("unknown part {name}; the parts are {}", NAMES.join(", "));
            }
        }
        let work = match std::env::var("BENCH_WORK") {
            Ok(work) => work.parse().context("BENCH_WORK must be a number, such as 0.05")?,
            Err(_) => 1.0,
        };
        ensure!(work > 0.0, "BENCH_WORK must be above 0");
        let fan_outs = std::env::var("BENCH_SPOKES").unwrap_or_else(|_| "1,3,8".to_owned());
        let fan_outs: Result<Vec<usize>, _> = fan_outs.split(',').map(|number| number.trim().parse()).collect();
        let fan_outs = fan_outs.context("BENCH_SPOKES must be a list of numbers, such as 1,3")?;
        ensure!(!fan_outs.contains(&0), "BENCH_SPOKES must not contain 0");
        Ok(Self { fan_outs, only, work })
    }

    /// True if the part is requested by its name, and not as one of all.
    pub fn name(&self, name: &str) -> bool {
        self.only.iter().any(|only| only == name)
    }

    /// True if the part is requested.
    pub fn have(&self, name: &str) -> bool {
        self.only.is_empty() || self.name(name)
    }

    /// True if one of the parts is requested.
    pub fn have_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.have(name))
    }

    /// The share of `number` that `BENCH_WORK` requests, and at least `least`.
    pub fn share_of(&self, number: usize, least: usize) -> usize {
        ((number as f64 * self.work) as usize).max(least)
    }
}
