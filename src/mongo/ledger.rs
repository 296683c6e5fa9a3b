//! The ledger of hub edits at a spoke: the saved notes of hub edits, their location and their end.
//!
//! A transaction that applies hub edits of the spoke's own documents saves a note of the edits (see
//! [`crate::rules::conflicts`]). Small notes go into the checkpoint, without an extra round trip; larger notes become
//! documents of `hub_edits`. A note is outlived as soon as no own change can meet the edits any more on the way back
//! from the hub.

use bson::RawDocumentBuf;

use super::error::Error;
use super::metadata::checkpoints::Checkpoint;
use super::metadata::hub_edits::{self, Edit, Note};
use super::server::Server;
use crate::rules::names::LinkName;

/// The saved notes of a downlink.
pub(crate) struct Ledger {
    link: LinkName,
    /// The number of the last note saved as a document, if any.
    last_document: Option<i64>,
    /// Notes up to this number are outlived.
    outlived: Option<i64>,
}

/// The ledger's part of a transaction.
pub(crate) struct Entered {
    /// Statements on `hub_edits`.
    pub(crate) statements: Vec<RawDocumentBuf>,
    /// The transaction's note is a document.
    is_document: bool,
}

impl Ledger {
    /// Reads the ledger of a downlink. Returns also all notes, in the order of the numbers.
    pub(crate) async fn load(
        server: &Server,
        link: &LinkName,
        checkpoint: &Checkpoint,
    ) -> Result<(Self, Vec<Note>), Error> {
        let mut notes = hub_edits::load(server, link).await?;
        let last_document = notes.last().map(|note| note.number);
        notes.extend(checkpoint.notes.iter().cloned());
        notes.sort_by_key(|note| note.number);
        Ok((Self { link: link.clone(), last_document, outlived: None }, notes))
    }

    /// Enters hub edits under a new number, and deletes outlived notes, in the transaction that saves the checkpoint.
    pub(crate) fn enter(&self, number: i64, edits: &[Edit], checkpoint: &mut Checkpoint) -> Entered {
        let mut entered = Entered { statements: Vec::new(), is_document: false };
        if let Some(up_to) = self.outlived {
            checkpoint.notes.retain(|note| note.number > up_to);
            if self.last_document.is_some() {
                entered.statements.push(hub_edits::delete(&self.link, up_to));
            }
        }
        if !edits.is_empty() {
            let note = Note::new(number, edits);
            entered.is_document = !note.fits_into(checkpoint);
            if entered.is_document {
                entered.statements.push(note.save(&self.link));
            } else {
                checkpoint.notes.push(note);
            }
        }
        entered
    }

    /// Records the commit of the transaction with this number.
    pub(crate) fn committed(&mut self, number: i64, entered: &Entered) {
        if self.outlived >= self.last_document {
            self.last_document = None;
        }
        if entered.is_document {
            self.last_document = Some(number);
        }
    }

    /// Marks notes up to this number as outlived; the next transaction deletes the notes.
    pub(crate) fn outlive(&mut self, up_to: Option<i64>) {
        self.outlived = up_to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fields::Fields;
    use crate::rules::key::Key;
    use crate::rules::names::Zone;
    use bson::raw::RawBson;

    fn ledger() -> Ledger {
        Ledger { link: LinkName::downlink(&Zone::new("DFW")), last_document: None, outlived: None }
    }

    fn edit(bytes: usize) -> Edit {
        let id = RawBson::String("x".repeat(bytes));
        Edit { key: Key::new(0, id.as_raw_bson_ref()), id, fields: Fields::All, is_uncertain: false }
    }

    fn commands(entered: &Entered) -> Vec<String> {
        let name = |statement: &RawDocumentBuf| {
            statement.iter().next().expect("has a command").expect("valid").0.as_str().to_owned()
        };
        entered.statements.iter().map(name).collect()
    }

    #[test]
    fn a_small_note_goes_into_the_checkpoint_and_a_large_one_is_a_document() {
        let mut checkpoint = Checkpoint::default();
        let small = ledger().enter(1, &[edit(10)], &mut checkpoint);
        assert_eq!((commands(&small).len(), checkpoint.notes.len()), (0, 1));
        let large = ledger().enter(2, &[edit(10_000)], &mut checkpoint);
        assert_eq!((commands(&large), checkpoint.notes.len()), (vec!["insert".to_owned()], 1));
    }

    #[test]
    fn a_transaction_without_hub_edits_enters_nothing() {
        let mut checkpoint = Checkpoint::default();
        let entered = ledger().enter(1, &[], &mut checkpoint);
        assert!(entered.statements.is_empty() && checkpoint.notes.is_empty());
    }

    #[test]
    fn outlived_notes_are_struck_wherever_they_are() {
        let (mut ledger, mut checkpoint) = (ledger(), Checkpoint::default());
        for number in [1, 2] {
            let entered = ledger.enter(number, &[edit(10)], &mut checkpoint);
            ledger.committed(number, &entered);
        }
        let large = ledger.enter(3, &[edit(10_000)], &mut checkpoint);
        ledger.committed(3, &large);
        ledger.outlive(Some(1));
        let struck = ledger.enter(4, &[], &mut checkpoint);
        assert_eq!(commands(&struck), ["delete"], "the document of number 3 may be one of them");
        assert_eq!(checkpoint.notes.iter().map(|note| note.number).collect::<Vec<_>>(), [2]);
        ledger.committed(4, &struck);
        ledger.outlive(Some(3));
        let last = ledger.enter(5, &[], &mut checkpoint);
        ledger.committed(5, &last);
        assert!(checkpoint.notes.is_empty());
        assert!(ledger.enter(6, &[], &mut checkpoint).statements.is_empty(), "no document is left");
    }
}
