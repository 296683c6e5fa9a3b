//! How many bytes a second go to a server at present: what is sent at once must be there within the time that a command has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Of commands with fewer bytes than these most of the time is not that of their bytes.
const TELLING: usize = 50_000;

/// Bytes a second, as the newest large command tells; 0 before there was one.
#[derive(Debug, Default)]
pub(super) struct Throughput(AtomicU64);

impl Throughput {
    /// A command of so many bytes took so long, or was given up after that.
    pub(super) fn learn(&self, bytes: usize, took: Duration) {
        if bytes >= TELLING {
            let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
            self.0.store((rate as u64).max(1), Ordering::Relaxed);
        }
    }

    /// The present one; `None` before the first measurement.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_commands_tell_and_small_ones_do_not() {
        let throughput = Throughput::default();
        throughput.learn(1_000, Duration::from_secs(1));
        assert_eq!(throughput.get(), None);
        throughput.learn(100_000, Duration::from_millis(500));
        assert_eq!(throughput.get(), Some(200_000));
        throughput.learn(60_000, Duration::from_secs(120_000));
        assert_eq!(throughput.get(), Some(1));
    }
}
