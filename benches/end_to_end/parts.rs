//! Which parts are measured, and how much work they do.
//!
//! `BENCH_ONLY=latency,inserts` names the parts; without it all are measured. `BENCH_WORK=0.05` does a twentieth of the
//! work, which shows that everything runs, and gives no figures worth keeping. `BENCH_SPOKES=1,3` measures throughput
//! with so many spokes.

use anyhow::{Context, Result, bail, ensure};

/// The names of all parts.
const NAMES: [&str; 13] = [
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
    "scale",
    "reference",
];

/// What was asked for.
pub struct Parts {
    /// How many spokes watch what hub applications write, in each measurement of throughput.
    pub fan_outs: Vec<usize>,
    only: Vec<String>,
    work: f64,
}

impl Parts {
    /// What the environment asks for.
    pub fn asked() -> Result<Self> {
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        let only: Vec<String> =
            only.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &only {
            if !NAMES.contains(&name.as_str()) {
                bail!("there is no part {name}; the parts are {}", NAMES.join(", "));
            }
        }
        let work = match std::env::var("BENCH_WORK") {
            Ok(work) => work.parse().context("BENCH_WORK is a number, such as 0.05")?,
            Err(_) => 1.0,
        };
        ensure!(work > 0.0, "BENCH_WORK is above 0");
        let fan_outs = std::env::var("BENCH_SPOKES").unwrap_or_else(|_| "1,3,8".to_owned());
        let fan_outs: Result<Vec<usize>, _> = fan_outs.split(',').map(|number| number.trim().parse()).collect();
        let fan_outs = fan_outs.context("BENCH_SPOKES is a list of numbers, such as 1,3")?;
        ensure!(!fan_outs.contains(&0), "without spokes there is nothing to measure");
        Ok(Self { fan_outs, only, work })
    }

    /// Whether this part is to be measured.
    pub fn have(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Whether one of these is.
    pub fn have_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.have(name))
    }

    /// So much of this number as is to be done, and at least `least`.
    pub fn share_of(&self, number: usize, least: usize) -> usize {
        ((number as f64 * self.work) as usize).max(least)
    }
}
