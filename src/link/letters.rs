//! An operator's requests about dead letters. A link handles requests between two batches, so no locks are needed.

use std::sync::{Mutex, PoisonError};

use bson::raw::RawDocumentBuf;
use bson::{Timestamp, rawdoc};
use serde_json::Value;

use super::apply::mark::Mark;
use super::apply::work::{Origin, Work};
use super::lifecycle::Link;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::Kept;
use crate::observe::status::Letter;
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::step::{Read, Step, Write, Zones};

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

impl Requests {
    pub(crate) fn add(&self, request: Request) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Handles the waiting requests, and shows the remaining dead letters.
pub(super) async fn attend<S: Source>(link: &mut Link<'_, S>) -> Result<(), Error> {
    let (requests, within) = (link.spoke.pair.letters(S::DIRECTION), link.source.zones());
    if within.is_empty() {
        return Ok(());
    }
    for request in requests.take() {
        let letters = link.parked.iter().filter(|(_, letter)| request.concerns(letter));
        let letters: Vec<(Key, Kept)> = letters.map(|(key, letter)| (key.clone(), letter.clone())).collect();
        for (key, letter) in letters {
            tracing::info!(action = ?request.action, id = ?letter.id, "dead letter");
            // From here on, changes of the document are not held back. The saved letter stays until the retry succeeds.
            link.parked.remove(&key);
            if request.action == LetterAction::Retry {
                let step = Step {
                    event: 0,
                    key: key.clone(),
                    id: letter.id.as_raw_bson_ref(),
                    zones: Zones::of(&within),
                    write: Write::Read(Read::Whole),
                    hub_edit: Some(Fields::All),
                };
                let again = Again(&letter);
                let last = link.source.server().clone().now().await?;
                link.apply(Work { steps: vec![step], last, ..Work::empty(&again) }).await?;
            }
            if !link.parked.contains_key(&key) {
                link.remove_letter(&letter).await?;
            }
        }
    }
    show(link);
    Ok(())
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
    bson::Bson::try_from(letter.id.clone()).map_or(Value::Null, Value::from)
}

/// The origin of a retry: a dead letter.
struct Again<'l>(&'l Kept);

impl Origin for Again<'_> {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn event(&self, _: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        (rawdoc! { "operationType": "retry", "documentKey": { "_id": self.0.id.as_raw_bson_ref() } }, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::raw::RawBson;
    use serde_json::json;

    fn letter(id: RawBson) -> Kept {
        let parked_at = bson::DateTime::from_millis(0);
        Kept { namespace: 0, id, code: 11000, message: String::new(), parked_at, later_changes: 0 }
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
            requests.add(Request { action, ids: None });
        }
        let taken: Vec<LetterAction> = requests.take().iter().map(|request| request.action).collect();
        assert_eq!(taken, [LetterAction::Retry, LetterAction::Drop]);
        assert!(requests.take().is_empty());
    }
}
