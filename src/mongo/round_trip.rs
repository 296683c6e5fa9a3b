//! How long a round trip to a server takes at present. Wires change while the program runs, so this is never a constant.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bson::Document;
use mongodb::event::sdam::{SdamEvent, ServerHeartbeatSucceededEvent};

/// The two newest measurements, of which the shorter one counts: one slow answer of a busy server says nothing of the way.
#[derive(Debug, Default)]
pub(super) struct RoundTrip(Mutex<[Option<Duration>; 2]>);

impl RoundTrip {
    /// A command that is no work for the server took so long.
    pub(super) fn learn(&self, took: Duration) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = [Some(took), newest[0]];
    }

    /// Learns from what the driver asks each member every `heartbeatFrequencyMS`, if it is the primary. An awaited answer tells how
    /// long nothing changed, not how long the way is: with `serverMonitoringMode=stream` connecting alone is measured.
    pub(super) fn learn_from(&self, event: &SdamEvent) {
        let SdamEvent::ServerHeartbeatSucceeded(ServerHeartbeatSucceededEvent { duration, reply, awaited, .. }) = event
        else {
            return;
        };
        if !awaited && is_primary(reply) {
            self.learn(*duration);
        }
    }

    /// The present one; nothing before the first measurement.
    pub(super) fn get(&self) -> Duration {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.iter().flatten().min().copied().unwrap_or_default()
    }
}

/// True for the primary's answer to `hello`, or to what that was called before 5.0, by which drivers still introduce themselves.
fn is_primary(reply: &Document) -> bool {
    ["isWritablePrimary", "ismaster"].iter().any(|name| matches!(reply.get_bool(name), Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_changes_nothing_and_two_do() {
        let round_trip = RoundTrip::default();
        assert_eq!(round_trip.get(), Duration::ZERO);
        let [short, long] = [1, 50].map(Duration::from_millis);
        for (took, expected) in [(long, long), (short, short), (long, short), (long, long), (short, short)] {
            round_trip.learn(took);
            assert_eq!(round_trip.get(), expected);
        }
    }
}
