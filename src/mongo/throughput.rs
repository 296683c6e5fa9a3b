//! Measures the throughput to a server, in bytes a second. A command must be small enough to arrive within its time
//! limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Smallest command that is measured, in bytes. The time of a smaller command depends little on the number of bytes.
const TELLING: usize = 50_000;

/// Bytes a second of the newest large command; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Throughput(AtomicU64);

impl Throughput {
    /// Records the size of a command, and the time until the server answered or the command was given up.
    pub(super) fn learn(&self, bytes: usize, took: Duration) {
        if bytes >= TELLING {
            let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
            self.0.store((rate as u64).max(1), Ordering::Relaxed);
        }
    }

    /// The present throughput in bytes a second; `None` before the first measurement.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_commands_are_measured() {
        let throughput = Throughput::default();
        throughput.learn(1_000, Duration::from_secs(1));
        assert_eq!(throughput.get(), None);
        throughput.learn(100_000, Duration::from_millis(500));
        assert_eq!(throughput.get(), Some(200_000));
        throughput.learn(60_000, Duration::from_secs(120_000));
        assert_eq!(throughput.get(), Some(1));
    }
}
