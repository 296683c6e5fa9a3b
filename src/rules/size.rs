//! The size of replies, batches and commands.
//!
//! A longer round trip to the server allows larger sizes, so that more changes share a round trip. The line limits the
//! sizes: a command beyond the time limit is given up, and would be sent again forever. Memory limits the sizes as
//! well, because everything sent together is in memory.

use std::ops::Range;
use std::time::Duration;

use super::queue::Weight;
use super::step::Step;

/// Time limit of a command. A command of 16 MB over a line of 10 Mbit/s takes half of the limit.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Maximum bytes of a command. A server accepts 16,793,600 bytes; a single statement with the largest document fits.
pub(crate) const MOST_COMMAND_BYTES: usize = 15_000_000;

/// Maximum of a batch for a near destination. A batch may exceed the maximum by up to a reply.
const NEAR: Weight = Weight { events: 10_000, bytes: 5_000_000 };

/// Maximum bytes of a command to a near destination: the driver copies a command about five times.
const NEAR_COMMAND: usize = 1_000_000;

/// Minimum bytes sent together, over any line: enough to measure the line's throughput.
const LEAST: usize = 200_000;

/// Intended time for the transfer of a command.
const COMMAND_TIME: Duration = CALL_LIMIT.checked_div(10).expect("10 is not 0");

/// Intended time for the transfer of a batch. A batch may hold up to twice as many bytes, and a server gives a
/// transaction 60 s by default (`transactionLifetimeLimitSeconds`).
const BATCH_TIME: Duration = Duration::from_secs(12);

/// Maximum number of events in the first reply, before their size is known. Every server also ends a reply at 16 MB.
pub(crate) const FIRST_REPLY_EVENTS: u32 = 400;

/// Maximum number of events in one reply of a near server.
const REPLY_EVENTS: u32 = 5_000;

/// Intended size of a reply of a near server, in bytes. Waiting replies stay in memory.
const REPLY_BYTES: usize = 3_000_000;

/// Intended time for the transfer of a reply. A slow connection gets smaller replies.
const REPLY_TIME: Duration = Duration::from_secs(3);

/// Smallest reply that measures the connection, in bytes. The time of a smaller reply depends little on the number of
/// bytes.
const TELLING_BYTES: usize = 100_000;

/// Every 15 ms of round-trip time adds the size of one near batch.
const STEP: Duration = Duration::from_millis(15);

/// The largest multiple of a near server's sizes.
const MOST_TIMES: usize = 4;

/// The multiple of a near server's sizes for this round-trip time.
pub(crate) fn times(round_trip: Duration) -> usize {
    let steps = usize::try_from(round_trip.as_nanos() / STEP.as_nanos()).unwrap_or(MOST_TIMES);
    (1 + steps).min(MOST_TIMES)
}

/// Measurements of a reply.
#[derive(Clone, Copy)]
pub(crate) struct Came {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    /// Time until the reply came, including the time in which the server waits for events.
    pub(crate) took: Duration,
}

/// The present state of the line to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) round_trip: Duration,
    /// Bytes a second; `None` before the first measurement.
    pub(crate) throughput: Option<u64>,
}

impl Line {
    /// Maximum of a batch.
    pub(crate) fn batch(self) -> Weight {
        let times = times(self.round_trip);
        Weight { events: NEAR.events * times, bytes: self.carried_in(BATCH_TIME).min(NEAR.bytes * times) }
    }

    /// Maximum bytes of a command. To a near destination, another round trip costs less than the memory.
    pub(crate) fn command_bytes(self) -> usize {
        let most = if times(self.round_trip) == 1 { NEAR_COMMAND } else { MOST_COMMAND_BYTES };
        self.carried_in(COMMAND_TIME).min(most)
    }

    /// Maximum number of events in the next replies, after a reply with a maximum of `now`. Replies of a far server may
    /// be larger. A maximum that is about right stays, because each change opens a new cursor. After a reply without
    /// events, the maximum is at most that of a first reply, because the size of the next events is unknown.
    pub(crate) fn reply_events(self, now: u32, came: Came) -> u32 {
        let times = times(self.round_trip);
        let Came { events, bytes, took } = came;
        if events == 0 {
            return now.min(FIRST_REPLY_EVENTS);
        }
        let most_events = REPLY_EVENTS.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX));
        let most_bytes = REPLY_BYTES * times;
        // A slow connection gets as many bytes as arrive in time.
        let rate = bytes as f64 / took.as_secs_f64().max(1e-3);
        let in_time = if bytes < TELLING_BYTES { most_bytes } else { (rate * REPLY_TIME.as_secs_f64()) as usize };
        let most_bytes = most_bytes.min(in_time);
        let fitting = u32::try_from(events * most_bytes / bytes).unwrap_or(most_events).clamp(1, most_events);
        let is_too_much = bytes > 2 * most_bytes;
        let is_full = u32::try_from(events) == Ok(now);
        if (is_too_much && fitting < now) || (is_full && fitting / 2 >= now) { fitting } else { now }
    }

    fn carried_in(self, time: Duration) -> usize {
        let Some(throughput) = self.throughput else { return NEAR_COMMAND };
        usize::try_from(throughput.saturating_mul(time.as_secs())).unwrap_or(usize::MAX).max(LEAST)
    }
}

/// The first item, and further waiting items up to the limit. The last item may exceed the limit.
pub(crate) fn gather<T>(
    first: T,
    limit: Weight,
    weigh: impl Fn(&T) -> Weight,
    mut next: impl FnMut() -> Option<T>,
) -> Vec<T> {
    let mut weight = weigh(&first);
    let mut gathered = vec![first];
    while weight.events < limit.events && weight.bytes < limit.bytes {
        let Some(item) = next() else { break };
        let Weight { events, bytes } = weigh(&item);
        weight = Weight { events: weight.events + events, bytes: weight.bytes + bytes };
        gathered.push(item);
    }
    gathered
}

/// The steps of `range` for the next transaction: all steps, or only the first steps if all steps exceed twice the
/// bytes of a batch. A reply, or the documents read for a reply, can exceed a batch. `read_bytes` is the expected size
/// of a document still to be read.
pub(crate) fn one_batch(steps: &[Step<'_>], range: Range<usize>, bytes: usize, read_bytes: usize) -> Range<usize> {
    let sizes = || steps[range.clone()].iter().map(|step| step.write.bytes(read_bytes));
    if sizes().sum::<usize>() <= 2 * bytes {
        return range;
    }
    let mut sum = 0;
    let fitting = sizes().take_while(|size| {
        sum += size;
        sum <= bytes
    });
    range.start..range.start + fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::key::Key;
    use crate::rules::step::{Read, Write, Zones};
    use bson::raw::RawBsonRef;

    fn steps<'a>(write: impl Fn(usize) -> Write<'a>) -> Vec<Step<'a>> {
        let id = RawBsonRef::Int32(1);
        let step = |event| Step {
            event,
            key: Key::new(0, id),
            id,
            zones: Zones::One("DFW"),
            write: write(event),
            hub_edit: None,
        };
        (0..10).map(step).collect()
    }

    #[test]
    fn a_reply_with_too_much_goes_into_several_transactions() {
        let document = bson::rawdoc! { "_id": 1, "text": "x".repeat(1_000) };
        let steps = steps(|_| Write::Insert(&document));
        let part = |range, bytes| one_batch(&steps, range, bytes, 0);
        assert_eq!(part(0..10, 6_000), 0..10, "less than twice the bytes of a batch");
        assert_eq!(part(0..10, 2_500), 0..2);
        assert_eq!(part(2..10, 2_500), 2..4);
        assert_eq!(part(8..10, 100), 8..9, "one step always goes");
        assert_eq!(one_batch(&[], 0..0, 100, 0), 0..0);
    }

    #[test]
    fn documents_still_to_be_read_count_with_their_expected_size() {
        let document = bson::rawdoc! { "_id": 1 };
        let steps = steps(|event| if event < 5 { Write::Read(Read::Whole) } else { Write::Insert(&document) });
        assert_eq!(one_batch(&steps, 0..10, 1_000, 100), 0..10);
        assert_eq!(one_batch(&steps, 0..10, 1_000, 500), 0..2);
        assert_eq!(one_batch(&steps, 4..10, 1_000, 500), 4..10);
    }

    /// The items gathered of those waiting, each one event of these bytes.
    fn gathered(waiting: &[usize], limit: Weight) -> Vec<usize> {
        let mut waiting = waiting.iter().copied();
        let first = waiting.next().expect("there is a first");
        gather(first, limit, |bytes| Weight { events: 1, bytes: *bytes }, || waiting.next())
    }

    #[test]
    fn waiting_items_are_gathered_up_to_the_limit_of_events_or_of_bytes() {
        let limit = Weight { events: 3, bytes: 100 };
        assert_eq!(gathered(&[1, 1, 1, 1], limit), [1, 1, 1]);
        assert_eq!(gathered(&[60, 60, 60], limit), [60, 60], "the last one may exceed the limit");
        assert_eq!(gathered(&[100, 1], limit), [100]);
        assert_eq!(gathered(&[1], limit), [1]);
    }

    #[test]
    fn the_first_item_is_taken_however_large() {
        assert_eq!(gathered(&[1_000_000, 1], Weight { events: 3, bytes: 100 }), [1_000_000]);
    }

    fn line(milliseconds: u64, throughput: u64) -> Line {
        Line { round_trip: Duration::from_millis(milliseconds), throughput: Some(throughput) }
    }

    #[test]
    fn sizes_grow_with_the_round_trip_up_to_a_limit() {
        let times_of = |milliseconds| times(Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 14, 15, 31, 50, 5_000].map(times_of), [1, 1, 1, 2, 3, 4, 4]);
        assert_eq!(times(Duration::MAX), MOST_TIMES);
    }

    #[test]
    fn batches_and_commands_grow_with_the_line() {
        let near = line(1, 100_000_000);
        assert_eq!((near.batch(), near.command_bytes()), (NEAR, NEAR_COMMAND));
        let far = line(60, 100_000_000);
        let times = times(far.round_trip);
        assert_eq!(far.batch(), Weight { events: times * NEAR.events, bytes: times * NEAR.bytes });
        assert_eq!(far.command_bytes(), MOST_COMMAND_BYTES);
    }

    #[test]
    fn a_narrow_line_gets_what_it_carries_in_time_and_an_unknown_line_gets_little() {
        let narrow = line(60, 250_000);
        assert_eq!((narrow.batch().bytes, narrow.command_bytes()), (3_000_000, 750_000));
        let stuck = line(60, 1);
        assert_eq!((stuck.batch().bytes, stuck.command_bytes()), (LEAST, LEAST));
        let unknown = Line { throughput: None, ..narrow };
        assert_eq!((unknown.batch().bytes, unknown.command_bytes()), (NEAR_COMMAND, NEAR_COMMAND));
    }

    fn after(times: usize, now: u32, events: usize, bytes: usize, milliseconds: u64) -> u32 {
        let round_trip = STEP * u32::try_from(times - 1).expect("few");
        Line { round_trip, throughput: None }
            .reply_events(now, Came { events, bytes, took: Duration::from_millis(milliseconds) })
    }

    #[test]
    fn large_events_lower_the_maximum_of_a_reply_and_small_events_raise_it() {
        assert_eq!(after(1, 5_000, 5_000, 5_000_000, 10), 5_000);
        assert_eq!(after(1, 5_000, 160, 16_000_000, 10), 30);
        assert_eq!(after(1, 40, 40, 4_000_000, 10), 40);
        assert_eq!(after(1, 40, 40, 40_000, 10), 3_000);
        assert_eq!(after(1, 40, 3, 3_000, 10), 40, "the reply was not full");
        assert_eq!(after(1, 5_000, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 1, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 5_000, 0, 300, 10), FIRST_REPLY_EVENTS, "the server is quiet");
        assert_eq!(after(1, 30, 0, 300, 10), 30);
        assert_eq!(after(3, 15_000, 15_000, 15_000_000, 10), 15_000, "the server is far");
        assert_eq!(after(4, 5_000, 5_000, 4_000_000, 10), 15_000, "the round trip has become long");
        assert_eq!(after(1, 15_000, 15_000, 12_000_000, 10), 3_750, "the round trip has become short");
    }

    #[test]
    fn a_slow_connection_gets_replies_that_arrive_in_time() {
        assert_eq!(after(4, 400, 400, 400_000, 1_000), 1_200);
        assert_eq!(after(4, 1_200, 1_200, 1_200_000, 3_000), 1_200, "the maximum is about right");
        assert_eq!(after(4, 12_000, 12_000, 12_000_000, 30_000), 1_200, "the connection has become slow");
        assert_eq!(after(4, 1_200, 10, 10_000, 10_000), 1_200, "the server was busy");
        assert_eq!(after(4, 1, 1, 16_000_000, 25_000), 1);
    }
}
