//! The number of steps in a transaction at a destination under pressure.
//!
//! A destination rolls a transaction back if it does not fit the cache, lasts too long, or meets a write of an
//! application. Sent again in the same size, the transaction may never get through. So a batch that is rolled back
//! twice is halved, down to a single step: a document that applications write all the time then goes alone. A large
//! batch costs the server much before it is rolled back, and is quartered the first time. The size that went through is
//! remembered, and grows by a quarter each time, until a batch is rolled back again; then the size before that one is
//! kept for a while.

/// The size that the destination takes, as far as known.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    /// Most steps of the next transaction; `None`: as many as fit.
    most: Option<usize>,
    /// The number of steps of the newest transaction that got through at the limit.
    good: Option<usize>,
    /// Transactions until the limit may grow.
    hold: u32,
    /// Times that the present batch was rolled back.
    tries: u32,
}

/// Rollbacks of the same size before a batch becomes smaller.
const TRIES: u32 = 2;

/// A batch of more steps is large.
const LARGE: usize = 500;

/// Transactions at a size that gets through, after a larger one did not.
const HOLD: u32 = 16;

/// A size at which the limit ends.
const ENOUGH: usize = 20_000;

impl Pressure {
    /// Most steps of the next transaction.
    pub(crate) fn most(&self) -> usize {
        self.most.unwrap_or(usize::MAX)
    }

    /// Records the rollback of a batch of so many steps. `for_good`: the same size can never get through. Returns true
    /// if the next attempt must be smaller.
    pub(crate) fn rolled_back(&mut self, steps: usize, for_good: bool) -> bool {
        self.tries += 1;
        let is_large = steps > LARGE;
        if steps <= 1 || (self.tries < TRIES && !for_good && !is_large) {
            return false;
        }
        self.tries = 0;
        self.most = Some(match self.good.take() {
            // The limit had grown too far.
            Some(good) if good < steps => {
                self.hold = HOLD;
                good
            }
            _ if is_large => steps / 4,
            _ => steps / 2,
        });
        true
    }

    /// Records the commit of a batch of so many steps.
    pub(crate) fn committed(&mut self, steps: usize) {
        self.tries = 0;
        let Some(most) = self.most.filter(|most| steps >= *most) else { return };
        self.good = Some(steps);
        match self.hold.checked_sub(1) {
            Some(rest) => self.hold = rest,
            None => self.most = Some(most + (most / 4).max(1)).filter(|next| *next < ENOUGH),
        }
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
        assert!(too_large.rolled_back(4_000, false) && too_large.most() == 1_000);
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
