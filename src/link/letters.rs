//! What an operator wants done about dead letters: a link attends to it between its batches.

use std::sync::{Mutex, PoisonError};

use bson::raw::RawDocumentBuf;
use bson::{Timestamp, rawdoc};
use serde_json::Value;

use crate::link::apply::Applier;
use crate::link::apply::work::{Load, Mark, Origin, Side};
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::Kept;
use crate::mongo::server::Server;
use crate::observe::status::{Cell, Letter};
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::step::{Read, Step, Write, Zones};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterAction {
    /// The document is read anew at the source and applied; what the destination now takes is no dead letter any more.
    Retry,
    /// What was refused is forgotten. Later changes of the document flow again.
    Drop,
}

/// What is to be done about which dead letters.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// What.
    pub(crate) action: LetterAction,
    /// The documents' `_id`s as relaxed extended JSON; all if none is given.
    pub(crate) ids: Option<Vec<Value>>,
}

/// Requests that a link has not attended to yet.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<Vec<Request>>);

impl Requests {
    /// One more.
    pub(crate) fn add(&self, request: Request) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Does what was asked for.
///
/// # Errors
/// If a server fails.
pub(super) async fn attend(
    requests: &Requests,
    applier: &mut Applier,
    side: &mut impl Side,
    source: &Server,
    zones: &Zones<'_>,
) -> Result<(), Error> {
    for request in requests.take() {
        let letters = applier.parked().iter().filter(|(_, letter)| request.concerns(letter));
        let letters: Vec<(Key, Kept)> = letters.map(|(key, letter)| (key.clone(), letter.clone())).collect();
        for (key, letter) in letters {
            tracing::info!(action = ?request.action, id = ?letter.id, "dead letter");
            applier.unpark(&key);
            if request.action == LetterAction::Retry {
                let step = Step {
                    event: 0,
                    key: key.clone(),
                    id: letter.id.as_raw_bson_ref(),
                    zones: zones.clone(),
                    write: Write::Read(Read::Whole),
                    hub_edit: Some(Fields::All),
                };
                let again = Again(&letter);
                let load = Load { steps: vec![step], last: source.now().await?, ..Load::empty(&again) };
                applier.apply(side, load).await?;
            }
            if !applier.parked().contains_key(&key) {
                applier.remove_letter(side, &letter).await?;
            }
        }
    }
    Ok(())
}

impl Request {
    fn concerns(&self, letter: &Kept) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&json(letter)))
    }
}

/// Shows the dead letters of a link.
pub(super) fn show(cell: &Cell, applier: &Applier, server: &Server) {
    let letters = applier.parked().values().map(|letter| Letter {
        ns: server.namespaces()[usize::from(letter.namespace)].to_string(),
        id: json(letter),
        code: letter.code,
        reason: letter.message.clone(),
        parked_at: letter.parked_at.try_to_rfc3339_string().unwrap_or_default(),
        later_changes: letter.later_changes,
    });
    cell.set_dead_letters(applier.parked().len(), letters);
}

fn json(letter: &Kept) -> Value {
    bson::Bson::try_from(letter.id.clone()).map_or(Value::Null, Value::from)
}

/// A dead letter that is tried again.
struct Again<'l>(&'l Kept);

impl Origin for Again<'_> {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn event(&self, _: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        (rawdoc! { "operationType": "retry", "documentKey": { "_id": self.0.id.as_raw_bson_ref() } }, None)
    }
}
