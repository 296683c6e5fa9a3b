//! An operator's requests about dead letters, and retries that are due. A link attends to both between two batches, so
//! no locks are needed.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lifecycle::Link;
use super::parked::{self, Letters, Parked};
use super::retry::{self, retry};
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters;
use crate::observe::status::Letter;
use crate::rules::key::Key;
use crate::rules::names::Direction;
use crate::rules::shown_id::{self, Told};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterAction {
    /// Read the document again at the source, and apply the document. If the destination accepts, the dead letter is
    /// deleted.
    Retry,
    /// Forget the refused change. Later changes of the document flow again.
    Drop,
}

impl LetterAction {
    /// The name in the API, and in wishes at the hub.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Drop => "drop",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Retry, Self::Drop].into_iter().find(|action| action.name() == name)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) action: LetterAction,
    pub(crate) which: Which,
}

/// The letters of a link that a request concerns.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    All,
    /// The letters of documents with these `_id`s, [as they are shown](shown_id::as_json).
    Shown(HashSet<Value>),
    One(Key),
}

/// Requests not handled yet.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<Vec<Request>>);

/// Requests that wait for a link at the same time, at most. A paused or failing link handles none.
const WAITING: usize = 20;

impl Requests {
    /// Adds an operator's request. False if too many requests wait already.
    pub(crate) fn ask(&self, request: Request) -> bool {
        let mut waiting = self.waiting();
        let has_room = waiting.len() < WAITING;
        if has_room {
            waiting.push(request);
        }
        has_room
    }

    /// Asks for a retry of one document's letter.
    pub(super) fn retry(&self, key: &Key) {
        self.waiting().push(Request { action: LetterAction::Retry, which: Which::One(key.clone()) });
    }

    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Request>> {
        // A list, changed in one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handles the waiting requests, and shows the remaining dead letters.
pub(super) async fn attend<S: Source>(link: &mut Link<'_, S>) -> Result<(), Error> {
    if link.source.zones().is_empty() {
        return Ok(());
    }
    for request in link.spoke.pair.letters(S::DIRECTION).take() {
        for key in request.which.among(&link.parked) {
            let Some(letter) = link.parked.get(&key).cloned() else { continue };
            tracing::info!(action = ?request.action, id = %Told(letter.id.as_raw_bson_ref()), "dead letter");
            match request.action {
                LetterAction::Retry => retry(link, &key, &letter).await?,
                LetterAction::Drop => {
                    link.parked.remove(&key);
                    link.drop_letter(&key, &letter).await?;
                }
            }
        }
    }
    if S::DIRECTION == Direction::Uplink {
        for key in link.spoke.pair.take_replaced() {
            if let Some(letter) = link.parked.remove(&key) {
                retry::give_up(link, &key, &letter).await?;
            }
        }
    }
    for key in link.retries.due(Instant::now(), DUE_TOGETHER) {
        let Some(letter) = link.parked.get(&key).cloned() else {
            link.retries.forget(&key);
            continue;
        };
        tracing::debug!(id = %Told(letter.id.as_raw_bson_ref()), "dead letter, tried again");
        retry(link, &key, &letter).await?;
    }
    if link.parked.hides_some() {
        show_more(link).await?;
    }
    show(link);
    Ok(())
}

/// Reads what to show of letters that were not shown, because others came first.
async fn show_more<S: Source>(link: &mut Link<'_, S>) -> Result<(), Error> {
    let (server, name) = (link.destination_server(), link.destination.link().clone());
    let mut pages = dead_letters::open(&server, &name);
    while link.parked.hides_some()
        && let Some(page) = pages.next().await?
    {
        for (key, letter) in page {
            link.parked.show(key, parked::split(letter).1);
        }
    }
    Ok(())
}

/// When refused changes are tried again by themselves: after five seconds, by which time both links have usually passed
/// the change, then after a minute, five minutes, and every hour.
const RETRY_AFTER: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(60), Duration::from_secs(300), Duration::from_secs(3_600)];

/// Letters tried again between two batches, at most.
const DUE_TOGETHER: usize = 100;

/// The next try of each dead letter.
#[derive(Debug, Default)]
pub(super) struct Retries {
    next: HashMap<Key, (usize, Instant)>,
    /// No letter is due before this time; `None` if unknown.
    quiet_until: Option<Instant>,
    /// Letters of a downlink about whose document a decision is being taken.
    deciding: HashSet<Key>,
}

impl Retries {
    /// The letters that are due; each gets its next time.
    fn due(&mut self, now: Instant, most: usize) -> Vec<Key> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let due = self.next.iter_mut().filter(|(_, (_, at))| *at <= now).take(most);
        let due = due.map(|(key, (tries, at))| {
            *tries += 1;
            *at = now + RETRY_AFTER[(*tries).min(RETRY_AFTER.len() - 1)];
            key.clone()
        });
        let due = due.collect();
        self.quiet_until = self.next.values().map(|(_, at)| *at).min();
        due
    }

    /// A letter was made, or found when the link was claimed. One that was tried before keeps its time.
    pub(super) fn add(&mut self, key: Key, now: Instant) {
        self.deciding.remove(&key);
        let (_, at) = *self.next.entry(key).or_insert((0, now + RETRY_AFTER[0]));
        self.quiet_until = self.quiet_until.map(|until| until.min(at));
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.next.remove(key);
        self.deciding.remove(key);
    }

    pub(super) fn decide(&mut self, key: &Key) {
        self.deciding.insert(key.clone());
    }

    /// True while a decision about the letter's document is being taken, and the spoke has not refused it again.
    pub(super) fn is_deciding(&self, key: &Key) -> bool {
        self.deciding.contains(key)
    }
}

impl Which {
    fn among(&self, letters: &Letters) -> Vec<Key> {
        let keys = |is_meant: &dyn Fn(&Parked) -> bool| {
            letters.iter().filter(|(_, letter)| is_meant(letter)).map(|(key, _)| key.clone()).collect()
        };
        match self {
            Self::All => keys(&|_| true),
            Self::Shown(ids) => keys(&|letter| ids.contains(&shown_id::as_json(letter.id.as_raw_bson_ref()))),
            Self::One(key) => vec![key.clone()],
        }
    }
}

/// Shows the link's dead letters in the status.
pub(super) fn show<S: Source>(link: &Link<'_, S>) {
    let namespaces = link.source.server().namespaces();
    let letters = link.parked.shown().map(|(letter, shown)| Letter {
        ns: namespaces[usize::from(letter.namespace)].to_string(),
        id: shown_id::as_json(letter.id.as_raw_bson_ref()),
        code: shown.code,
        reason: shown.message.clone(),
        parked_at: shown.parked_at.try_to_rfc3339_string().unwrap_or_default(),
        later_changes: shown.later_changes,
    });
    link.cell().set_dead_letters(link.parked.len(), letters);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::parked::tests::letter;
    use bson::raw::RawBson;
    use serde_json::json;

    #[test]
    fn a_request_without_ids_concerns_every_letter_and_one_with_ids_only_these() {
        let mut letters = Letters::default();
        let ids = [RawBson::Int32(7), RawBson::String("seven".to_owned()), RawBson::Int32(8)];
        for id in ids {
            let (key, letter) = letter(id);
            letters.add(key, letter);
        }
        let shown = |ids: &[Value]| Which::Shown(ids.iter().cloned().collect()).among(&letters).len();
        assert_eq!(Which::All.among(&letters).len(), 3);
        assert_eq!(shown(&[json!(7), json!("seven"), json!(9)]), 2);
        assert_eq!(shown(&[]), 0);
        let (key, _) = letter(RawBson::Int32(8));
        assert_eq!(Which::One(key.clone()).among(&letters), [key]);
    }

    #[test]
    fn requests_wait_in_their_order_and_are_taken_once() {
        let requests = Requests::default();
        for action in [LetterAction::Retry, LetterAction::Drop] {
            requests.ask(Request { action, which: Which::All });
        }
        let taken: Vec<LetterAction> = requests.take().iter().map(|request| request.action).collect();
        assert_eq!(taken, [LetterAction::Retry, LetterAction::Drop]);
        assert!(requests.take().is_empty());
    }

    #[test]
    fn a_refused_change_is_tried_again_after_seconds_then_minutes_then_hours() {
        let (mut retries, begun, key) =
            (Retries::default(), Instant::now(), Key::new(0, bson::raw::RawBsonRef::Int32(1)));
        retries.add(key.clone(), begun);
        let mut at = begun;
        for seconds in [5, 60, 300, 3_600, 3_600] {
            assert!(retries.due(at + Duration::from_secs(seconds - 1), 9).is_empty());
            retries.add(key.clone(), at);
            at += Duration::from_secs(seconds);
            assert_eq!(retries.due(at, 9), std::slice::from_ref(&key), "after {seconds} s");
        }
        retries.forget(&key);
        assert!(retries.due(at + Duration::from_secs(9_999), 9).is_empty());
    }
}
