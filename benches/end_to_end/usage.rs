//! CPU time and memory of a process, from the operating system's counters.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time and memory of a process so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Current memory in bytes.
    pub memory: u64,
    /// Peak memory in bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// Reads the usage of the process with this id.
    pub fn of(process: u32) -> Result<Self> {
        const TICKS_PER_SECOND: u64 = 100;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may hold any characters, and ends with the last parenthesis. After the name, state is field 3, utime
        // 14 and stime 15.
        let fields: Vec<&str> = stat.rsplit_once(')').context("stat has no name")?.1.split_whitespace().collect();
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
