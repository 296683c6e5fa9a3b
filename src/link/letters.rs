//! An operator's requests about dead letters, and retries that are due. A link attends to both between two batches, so
//! no locks are needed.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bson::raw::RawBson;
use serde_json::Value;

use super::lifecycle::Link;
use super::retry::{self, retry};
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::Kept;
use crate::observe::status::Letter;
use crate::rules::key::Key;
use crate::rules::names::Direction;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterAction {
    /// Read the document again at the source, and apply the document. If the destination accepts, the dead letter is
    /// deleted.
    Retry,
    /// Forget the refused change. Later changes of the document flow again.
    Drop,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) action: LetterAction,
    /// The documents' `_id`s as relaxed extended JSON; `None`: all letters of the link.
    pub(crate) ids: Option<Vec<Value>>,
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
    pub(super) fn retry(&self, id: &RawBson) {
        self.waiting().push(Request { action: LetterAction::Retry, ids: Some(vec![shown(id)]) });
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
        let letters = link.parked.iter().filter(|(_, letter)| request.concerns(letter));
        let letters: Vec<(Key, Kept)> = letters.map(|(key, letter)| (key.clone(), letter.clone())).collect();
        for (key, letter) in letters {
            tracing::info!(action = ?request.action, id = ?letter.id, "dead letter");
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
        tracing::debug!(id = ?letter.id, "dead letter, tried again");
        retry(link, &key, &letter).await?;
    }
    show(link);
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
    /// Letters of a downlink about whose document a decision is being taken.
    deciding: HashSet<Key>,
}

impl Retries {
    /// The letters that are due; each gets its next time.
    fn due(&mut self, now: Instant, most: usize) -> Vec<Key> {
        let due = self.next.iter_mut().filter(|(_, (_, at))| *at <= now).take(most);
        due.map(|(key, (tries, at))| {
            *tries += 1;
            *at = now + RETRY_AFTER[(*tries).min(RETRY_AFTER.len() - 1)];
            key.clone()
        })
        .collect()
    }

    /// A letter was made, or found when the link was claimed. One that was tried before keeps its time.
    pub(super) fn add(&mut self, key: Key, now: Instant) {
        self.deciding.remove(&key);
        self.next.entry(key).or_insert((0, now + RETRY_AFTER[0]));
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

impl Request {
    fn concerns(&self, letter: &Kept) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&json(letter)))
    }
}

/// Shows the link's dead letters in the status.
pub(super) fn show<S: Source>(link: &Link<'_, S>) {
    let namespaces = link.source.server().namespaces();
    let letters = link.parked.values().map(|letter| Letter {
        ns: namespaces[usize::from(letter.namespace)].to_string(),
        id: json(letter),
        code: letter.code,
        reason: letter.message.clone(),
        parked_at: letter.parked_at.try_to_rfc3339_string().unwrap_or_default(),
        later_changes: letter.later_changes,
    });
    link.cell().set_dead_letters(link.parked.len(), letters);
}

fn json(letter: &Kept) -> Value {
    shown(&letter.id)
}

fn shown(id: &RawBson) -> Value {
    bson::Bson::try_from(id.clone()).map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn letter(id: RawBson) -> Kept {
        let parked_at = bson::DateTime::from_millis(0);
        Kept {
            namespace: 0,
            id,
            code: 11000,
            message: String::new(),
            parked_at,
            later_changes: 0,
            is_fresh: false,
            is_deleted: false,
        }
    }

    #[test]
    fn a_request_without_ids_concerns_every_letter_and_one_with_ids_only_these() {
        let (all, some) = (None, Some(vec![json!(7), json!("seven")]));
        let concerns = |ids: &Option<Vec<Value>>, id| {
            Request { action: LetterAction::Drop, ids: ids.clone() }.concerns(&letter(id))
        };
        assert!(concerns(&all, RawBson::Int32(1)) && concerns(&some, RawBson::Int32(7)));
        assert!(concerns(&some, RawBson::String("seven".to_owned())));
        assert!(!concerns(&some, RawBson::Int32(8)) && !concerns(&Some(vec![]), RawBson::Int32(7)));
    }

    #[test]
    fn requests_wait_in_their_order_and_are_taken_once() {
        let requests = Requests::default();
        for action in [LetterAction::Retry, LetterAction::Drop] {
            requests.ask(Request { action, ids: None });
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
