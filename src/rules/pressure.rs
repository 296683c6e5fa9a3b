//! The number of steps in a transaction at a destination under pressure.
//!
//! A destination rolls a transaction back if it does not fit the cache, lasts too long, or meets a write of an
//! application. Sent again in the same size, the transaction may never get through. So a batch that is rolled back twice
//! is halved, down to a single step: a document that applications write all the time then goes alone. The size that went
//! through is remembered, and grows: by a quarter while the size is well below the last one that failed, and slowly from
//! there.

/// The size that the destination takes, as far as known.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    /// Most steps of the next transaction; `None`: as many as fit.
    most: Option<usize>,
    /// The number of steps that was rolled back twice most recently.
    failed: Option<usize>,
    /// Times that the present batch was rolled back.
    tries: u32,
}

/// Rollbacks of the same size before a batch is halved.
const TRIES: u32 = 2;

/// A size at which the limit ends.
const ENOUGH: usize = 20_000;

impl Pressure {
    /// Most steps of the next transaction.
    pub(crate) fn most(&self) -> usize {
        self.most.unwrap_or(usize::MAX)
    }

    /// Records the rollback of a batch of so many steps. `for_good`: the same size can never get through. Returns true if
    /// the next attempt must be smaller.
    pub(crate) fn rolled_back(&mut self, steps: usize, for_good: bool) -> bool {
        self.tries += 1;
        if steps <= 1 || (self.tries < TRIES && !for_good) {
            return false;
        }
        self.tries = 0;
        self.failed = Some(steps);
        self.most = Some(steps / 2);
        true
    }

    /// Records the commit of a batch of so many steps.
    pub(crate) fn committed(&mut self, steps: usize) {
        self.tries = 0;
        let Some(most) = self.most.filter(|most| steps >= *most) else { return };
        if self.failed.is_some_and(|failed| steps >= failed) {
            self.failed = None;
        }
        let quick = most + (most / 4).max(1);
        let slow = most + (most / 32).max(1);
        let next = if self.failed.is_some_and(|failed| quick >= failed) { slow } else { quick };
        self.most = (next < ENOUGH).then_some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many steps to a destination that takes at most `fitting` in a transaction. Returns the sizes of the
    /// transactions, and the number of rollbacks.
    fn send(pressure: &mut Pressure, mut steps: usize, fitting: usize) -> (Vec<usize>, usize) {
        let (mut sizes, mut rollbacks) = (Vec::new(), 0);
        while steps > 0 {
            let size = steps.min(pressure.most());
            if size > fitting {
                rollbacks += 1;
                pressure.rolled_back(size, false);
            } else {
                pressure.committed(size);
                sizes.push(size);
                steps -= size;
            }
        }
        (sizes, rollbacks)
    }

    #[test]
    fn one_rollback_changes_nothing_and_two_halve_the_batch() {
        let mut pressure = Pressure::default();
        assert!(!pressure.rolled_back(100, false) && pressure.most() == usize::MAX);
        assert!(pressure.rolled_back(100, false) && pressure.most() == 50);
        let mut too_large = Pressure::default();
        assert!(too_large.rolled_back(100, true) && too_large.most() == 50);
    }

    #[test]
    fn a_single_step_is_not_halved() {
        let mut pressure = Pressure::default();
        assert!(!pressure.rolled_back(1, true) && !pressure.rolled_back(1, true) && pressure.most() == usize::MAX);
    }

    #[test]
    fn most_work_gets_through_in_sizes_near_the_limit() {
        let mut pressure = Pressure::default();
        send(&mut pressure, 10_000, 300);
        let (sizes, rollbacks) = send(&mut pressure, 30_000, 300);
        let average = 30_000 / sizes.len();
        assert!(average >= 200 && rollbacks * 4 <= sizes.len(), "{average} steps, {rollbacks} rollbacks");
    }

    #[test]
    fn after_the_pressure_the_size_grows_until_there_is_no_limit() {
        let mut pressure = Pressure::default();
        send(&mut pressure, 8_000, 1);
        let (sizes, rollbacks) = send(&mut pressure, 100_000, usize::MAX);
        assert!(sizes.len() < 60 && rollbacks == 0, "{} transactions", sizes.len());
        assert_eq!(pressure.most(), usize::MAX);
    }
}
