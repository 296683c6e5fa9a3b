//! Positions in a change stream.
//!
//! A resume token is opaque, except for two facts from the server's source (`resume_token.cpp`), which a test checks
//! against a running server: tokens of one server compare like their hexadecimal `_data`, and bytes 1 to 8 of `_data`
//! are the cluster time.

use std::cmp::Ordering;

use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Timestamp, rawdoc};

/// What follows the cluster time in a token that only reports a stream's progress, made by us: version 1, kind 0.
const PROGRESS: &str = "2B0229";

/// The kind of a token that only reports a stream's progress, behind the cluster time and the version. Servers up to
/// 6.0 make such tokens in version 1, later ones in version 2.
const KIND_OF_PROGRESS: &str = "29";

/// A resume token with its cluster time.
#[derive(Clone)]
pub struct Position {
    token: RawDocumentBuf,
    cluster_time: Timestamp,
}

impl Position {
    /// The position named by `token`. `None` if `token` is not a resume token of a MongoDB server.
    pub fn from_token(token: &RawDocument) -> Option<Self> {
        let cluster_time = cluster_time(token.get_str("_data").ok()?)?;
        Some(Self { token: token.to_owned(), cluster_time })
    }

    /// The position before all events of this position's cluster time. Its token is made of the time alone, so it names
    /// no event that a server could refuse.
    pub fn before_its_time(&self) -> Self {
        let Timestamp { time, increment } = self.cluster_time;
        let data = format!("82{time:08X}{increment:08X}{PROGRESS}296E04");
        Self { token: rawdoc! { "_data": data }, cluster_time: self.cluster_time }
    }

    /// The resume token, as accepted by the server in `startAfter`.
    pub fn token(&self) -> &RawDocument {
        &self.token
    }

    /// The server's cluster time at the position.
    pub fn cluster_time(&self) -> Timestamp {
        self.cluster_time
    }

    /// The last moment completely seen by a reader at the position: one tick before the cluster time. A stream opened
    /// now starts one tick after the server's newest operation, a time at which no read is possible.
    pub fn seen_until(&self) -> Timestamp {
        let Timestamp { time, increment } = self.cluster_time;
        match increment.checked_sub(1) {
            Some(increment) => Timestamp { time, increment },
            None => Timestamp { time: time.saturating_sub(1), increment: u32::MAX },
        }
    }

    /// The exact moment of a reader at the position: everything up to the moment is seen, and nothing later. The
    /// exception is a transaction with the same cluster time, possibly seen in part only.
    pub fn moment(&self) -> Timestamp {
        if self.is_of_event() { self.cluster_time } else { self.seen_until() }
    }

    /// True for the position of an event. Other positions only report a stream's progress, and sort before every event
    /// of the same cluster time. After the cluster time, a token holds the version, 1 or 2, and the kind: 128 for an
    /// event, 0 otherwise (`resume_token.h`).
    pub fn is_of_event(&self) -> bool {
        !self.data().get(22..).is_some_and(|rest| rest.starts_with(KIND_OF_PROGRESS))
    }

    /// The part of a token by which tokens compare.
    fn data(&self) -> &str {
        self.token.get_str("_data").unwrap_or_default()
    }

    /// True if a reader at the position has seen the event with this token.
    pub fn has_seen(&self, token: &RawDocument) -> bool {
        token.get_str("_data").is_ok_and(|data| data <= self.data())
    }
}

impl PartialEq for Position {
    fn eq(&self, other: &Self) -> bool {
        self.data() == other.data()
    }
}

impl Eq for Position {}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        self.data().cmp(other.data())
    }
}

impl std::fmt::Debug for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.cluster_time.time, self.cluster_time.increment)
    }
}

/// Reads the cluster time from `_data`: `82`, then 16 hexadecimal digits of cluster time, then the server's internals.
fn cluster_time(data: &str) -> Option<Timestamp> {
    let number = |range| u32::from_str_radix(data.get(range)?, 16).ok();
    if data.get(0..2)? != "82" {
        return None;
    }
    Some(Timestamp { time: number(2..10)?, increment: number(10..18)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(data: &str) -> Position {
        Position::from_token(&rawdoc! { "_data": data }).expect("a token")
    }

    #[test]
    fn the_cluster_time_is_read_from_the_token() {
        let idle = position("826B04A69B000000022B0229296E04");
        assert_eq!(idle.cluster_time(), Timestamp { time: 0x6B04_A69B, increment: 2 });
    }

    #[test]
    fn an_idle_position_lies_before_the_events_of_its_time() {
        let idle = position("826B04A69B000000022B0229296E04");
        let event = rawdoc! { "_data": "826B04A69B000000022B022C0100296E5A10045F9B00BC8A734FC9ABBD686F78A70DCD46" };
        assert!(!idle.has_seen(&event));
        assert!(position("826B04A69B000000032B0229296E04").has_seen(&event));
        assert!(Position::from_token(&event).expect("a token").has_seen(&event));
    }

    #[test]
    fn a_reader_at_an_event_has_seen_its_time_and_a_reader_between_events_has_not() {
        let time = Timestamp { time: 0x6B04_A69B, increment: 2 };
        assert_eq!(position("826B04A69B000000022B022C0100296E5A1004").moment(), time);
        for progress in ["826B04A69B000000022B0229296E04", "826B04A69B000000022B0429296E1404"] {
            assert_eq!(position(progress).moment(), Timestamp { increment: 1, ..time }, "{progress}");
        }
    }

    #[test]
    fn the_position_before_a_time_has_seen_no_event_of_it() {
        let event = position("826B04A69B000000022B022C0100296E5A10045F9B00BC8A734FC9ABBD686F78A70DCD46");
        for damaged in ["826B04A69B00000002ZZZZ", "826B04A69B00000002"] {
            let before = position(damaged).before_its_time();
            assert_eq!(before, event.before_its_time(), "{damaged}");
            assert!(!before.has_seen(event.token()) && before < event);
            assert_eq!(before.moment(), event.before_its_time().moment());
        }
    }

    #[test]
    fn anything_but_a_token_is_refused() {
        for data in ["", "82", "zz6B04A69B00000002", "826B04A69B0000000", "ééééééééééééééé"] {
            assert!(Position::from_token(&rawdoc! { "_data": data }).is_none(), "{data:?}");
        }
        assert!(Position::from_token(&rawdoc! { "other": 1 }).is_none());
    }
}
