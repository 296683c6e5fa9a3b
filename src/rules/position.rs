//! Places in a change stream.
//!
//! A resume token is opaque but for two facts that this program uses, both read from the server's source
//! (`resume_token.cpp`) and checked by a test against a running one: tokens of one server compare as their hexadecimal
//! `_data` does, and bytes 1 to 8 of it are the cluster time.

use std::cmp::Ordering;

use bson::Timestamp;
use bson::raw::{RawDocument, RawDocumentBuf};

/// A resume token with its cluster time.
#[derive(Clone)]
pub struct Position {
    token: RawDocumentBuf,
    cluster_time: Timestamp,
}

impl Position {
    /// The place that `token` names, or `None` if that is no resume token of a MongoDB server.
    pub fn from_token(token: &RawDocument) -> Option<Self> {
        let cluster_time = cluster_time(token.get_str("_data").ok()?)?;
        Some(Self { token: token.to_owned(), cluster_time })
    }

    /// What the server takes as `startAfter`.
    pub fn token(&self) -> &RawDocument {
        &self.token
    }

    /// The server's time at this place.
    pub fn cluster_time(&self) -> Timestamp {
        self.cluster_time
    }

    /// The last moment of which a reader that stands here has seen everything. A stream that starts now stands one tick after
    /// the server's newest operation, which is a time that no read can ask for.
    pub fn seen_until(&self) -> Timestamp {
        let Timestamp { time, increment } = self.cluster_time;
        match increment.checked_sub(1) {
            Some(increment) => Timestamp { time, increment },
            None => Timestamp { time: time.saturating_sub(1), increment: u32::MAX },
        }
    }

    /// The exact moment that a reader stands at: it has seen everything up to it, and nothing after. (But for a transaction with
    /// this cluster time of which it has seen only a part.)
    pub fn moment(&self) -> Timestamp {
        if self.is_of_event() { self.cluster_time } else { self.seen_until() }
    }

    /// Whether it is the place of an event. Others, which tell how far a stream is, lie before all events of their time. Behind the
    /// cluster time a token has its version and its kind, as the numbers 1 and 0 or 128 (`resume_token.h`).
    fn is_of_event(&self) -> bool {
        !self.data().get(18..).is_some_and(|rest| rest.starts_with("2B0229"))
    }

    /// What tokens compare by.
    fn data(&self) -> &str {
        self.token.get_str("_data").unwrap_or_default()
    }

    /// True if the event with this token lies behind this place: a reader that stands here has seen it.
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

/// A token's `_data` is `82`, then the cluster time as 16 hexadecimal digits, then what is the server's own.
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
    use bson::rawdoc;

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
    fn who_stands_at_an_event_has_seen_its_time_and_who_stands_between_has_not() {
        let time = Timestamp { time: 0x6B04_A69B, increment: 2 };
        assert_eq!(position("826B04A69B000000022B022C0100296E5A1004").moment(), time);
        assert_eq!(position("826B04A69B000000022B0229296E04").moment(), Timestamp { increment: 1, ..time });
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for data in ["", "82", "zz6B04A69B00000002", "826B04A69B0000000", "ééééééééééééééé"] {
            assert!(Position::from_token(&rawdoc! { "_data": data }).is_none(), "{data:?}");
        }
        assert!(Position::from_token(&rawdoc! { "other": 1 }).is_none());
    }
}
