//! What a process uses, as the operating system tells it.

use std::time::Duration;

use anyhow::{Context, Result};

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// The memory that it has now, in bytes.
    pub memory: u64,
    /// The most memory that it had at once, in bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// What the process with this number has used so far.
    pub fn of(process: u32) -> Result<Self> {
        const TICKS_PER_SECOND: u64 = 100;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the name, which may hold anything but ends with the last parenthesis: state is field 3, utime 14, stime
        // 15.
        let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        Ok(Self {
            cpu: Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND),
            memory: bytes(&status, "VmRSS:")?,
            peak_memory: bytes(&status, "VmHWM:")?,
        })
    }
}

fn bytes(status: &str, name: &'static str) -> Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}
