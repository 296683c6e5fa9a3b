//! Measures the round-trip time to a server. Network routes change while the program runs, so the newest measurements
//! count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bson::Document;
use mongodb::event::sdam::{SdamEvent, ServerHeartbeatSucceededEvent};

/// The two newest measurements. The shorter counts, because one slow answer of a busy server says nothing about the
/// network.
#[derive(Debug, Default)]
pub(super) struct RoundTrip(Mutex<[Option<Duration>; 2]>);

impl RoundTrip {
    /// Records the duration of a command that is no work for the server.
    pub(super) fn learn(&self, took: Duration) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = [Some(took), newest[0]];
    }

    /// Records the duration of the driver's heartbeat, sent every `heartbeatFrequencyMS` to each member, if the primary
    /// answered. Awaited heartbeats do not count: the server delays the answer until its state changes. With
    /// `serverMonitoringMode=stream`, later heartbeats are awaited, so only connecting is measured.
    pub(super) fn learn_from(&self, event: &SdamEvent) {
        let SdamEvent::ServerHeartbeatSucceeded(ServerHeartbeatSucceededEvent { duration, reply, awaited, .. }) = event
        else {
            return;
        };
        if !awaited && is_primary(reply) {
            self.learn(*duration);
        }
    }

    /// The present round-trip time; zero before the first measurement.
    pub(super) fn get(&self) -> Duration {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.iter().flatten().min().copied().unwrap_or_default()
    }
}

/// True for the primary's answer to `hello`, or to `isMaster`, the name before 5.0, by which drivers still connect.
fn is_primary(reply: &Document) -> bool {
    ["isWritablePrimary", "ismaster"].iter().any(|name| matches!(reply.get_bool(name), Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_has_no_effect_and_two_have() {
        let round_trip = RoundTrip::default();
        assert_eq!(round_trip.get(), Duration::ZERO);
        let [short, long] = [1, 50].map(Duration::from_millis);
        for (took, expected) in [(long, long), (short, short), (long, short), (long, long), (short, short)] {
            round_trip.learn(took);
            assert_eq!(round_trip.get(), expected);
        }
    }
}
