//! Notes of hub edits (see [`crate::rules::conflicts`]). Every transaction that applies hub edits at a spoke saves a
//! note, and a restarted downlink reads the notes back.
//!
//! ```text
//! _id    document  { link: string, number: int64 }: the downlink, and the `seq` of its save in the same transaction
//! edits  array     { ns: int32, id: any, fields: array of strings, may_add: bool }
//!
//! ns       number of the collection, by the order of the configuration
//! id       `_id` of the document, or as bytes, see [`opaque::nested_id`]
//! fields   top-level fields that the edit touches; absent if the edit touches the whole document
//! may_add  whether the edit may add a field, and so change the order of fields; absent if `fields` is absent
//! ```
//!
//! Kept at the spoke. A downlink writes a note in the transaction that applies the hub edits: into its checkpoint,
//! without an additional round trip, while all notes there have at most 8,000 bytes; else into this collection. A later
//! transaction of the downlink deletes all notes that no own change can meet any more
//! ([`Conflicts::downlink_passed`](crate::rules::conflicts::Conflicts::downlink_passed)).
//!
//! Index: only `_id`. The queries by `_id.link` and `_id.number` scan the collection.

use bson::raw::{RawArray, RawArrayBuf, RawBson, RawDocument, RawDocumentBuf};
use bson::{Document, doc, rawdoc};

use super::checkpoints::Checkpoint;
use super::{HUB_EDITS, raw};
use crate::mongo::error::Error;
use crate::mongo::server::{Server, first_batch};
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::names::LinkName;
use crate::rules::opaque;

#[derive(Debug)]
pub(crate) struct Edit {
    pub(crate) key: Key,
    pub(crate) id: RawBson,
    pub(crate) fields: Fields,
    /// A delete that may have found no document. Not saved.
    pub(crate) is_uncertain: bool,
}

/// Most bytes of all notes in a checkpoint. Every save writes the whole checkpoint, notes included.
const BYTES_IN_CHECKPOINT: usize = 8_000;

/// The hub edits of one transaction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Note {
    /// The number of the note, unique for its link and ascending.
    pub(crate) number: i64,
    /// `None` if too much was saved to be read.
    edits: Option<RawArrayBuf>,
}

impl Note {
    /// A note of these edits. The number must be new.
    pub(crate) fn new(number: i64, edits: &[Edit]) -> Self {
        let mut array = RawArrayBuf::new();
        for edit in edits {
            let mut saved =
                rawdoc! { "ns": i32::from(edit.key.namespace()), "id": opaque::nested_id(edit.id.as_raw_bson_ref()) };
            if let Fields::Some { names, may_add } = &edit.fields {
                let names: RawArrayBuf = names.iter().map(|name| &**name).collect();
                saved.append(bson::raw::cstr!("fields"), names);
                saved.append(bson::raw::cstr!("may_add"), *may_add);
            }
            array.push(saved);
        }
        Self { number, edits: Some(array) }
    }

    pub(crate) fn fits_into(&self, checkpoint: &Checkpoint) -> bool {
        let notes = checkpoint.notes.iter().chain([self]);
        notes.map(Self::bytes).sum::<usize>() <= BYTES_IN_CHECKPOINT
    }

    fn bytes(&self) -> usize {
        self.edits.as_ref().map_or(0, |edits| edits.as_bytes().len())
    }

    /// The edits; `None` if they may be of any document.
    pub(crate) fn edits(&self) -> Option<Vec<(Key, Fields)>> {
        let edits = self.edits.as_ref()?;
        Some(edits.into_iter().filter_map(|edit| read_edit(edit.ok()?.as_document()?)).collect())
    }

    fn saved_edits(&self) -> RawArrayBuf {
        self.edits.clone().unwrap_or_default()
    }

    /// The note as an element of the checkpoint's `hub_edits`.
    pub(super) fn to_raw(&self) -> RawDocumentBuf {
        rawdoc! { "number": self.number, "edits": self.saved_edits() }
    }

    pub(super) fn read(saved: &RawDocument) -> Option<Self> {
        Some(Self { number: saved.get_i64("number").ok()?, edits: Some(saved.get_array("edits").ok()?.to_owned()) })
    }

    pub(crate) fn save(&self, link: &LinkName) -> RawDocumentBuf {
        rawdoc! {
            "insert": HUB_EDITS,
            "documents": [{ "_id": { "link": link.to_string(), "number": self.number }, "edits": self.saved_edits() }],
        }
    }
}

/// The command that deletes all notes of the link up to this number.
pub(crate) fn delete(link: &LinkName, up_to: i64) -> RawDocumentBuf {
    rawdoc! {
        "delete": HUB_EDITS,
        "deletes": [{
            "q": { "_id.link": link.to_string(), "_id.number": { "$lte": up_to } }, "limit": 0, "hint": { "_id": 1 },
        }],
    }
}

/// Bytes of saved notes after which only the numbers of further notes are read. A reply may go 16 MB beyond.
const BYTES_READ: usize = 32_000_000;

/// Reads the notes of a link that are documents, in the order of their numbers. Beyond [`BYTES_READ`], the edits stay
/// unknown.
pub(crate) async fn load(server: &Server, link: &LinkName) -> Result<Vec<Note>, Error> {
    let mut notes: Vec<Note> = Vec::new();
    let mut after = i64::MIN;
    let mut bytes = 0;
    loop {
        let projection = if bytes > BYTES_READ {
            doc! { "_id": 1 }
        } else {
            doc! {}
        };
        let find = doc! {
            "find": HUB_EDITS, "projection": projection, "filter": { "_id.link": link.to_string(), "_id.number": { "$gt": after } },
            "sort": { "_id.number": 1 }, "hint": { "_id": 1 }, "limit": 100, "singleBatch": true,
            "readConcern": { "level": "majority" },
        };
        let reply = server.run("reading saved hub edits", &server.metadata(), find).await?;
        let before = notes.len();
        let is_read = bytes <= BYTES_READ;
        notes.extend(first_batch(&reply).filter_map(|saved| if is_read { read(saved) } else { unread(saved) }));
        bytes += notes[before..].iter().map(Note::bytes).sum::<usize>();
        match notes.last() {
            Some(Note { number, .. }) if notes.len() > before => after = *number,
            _ => return Ok(notes),
        }
    }
}

fn read(saved: &Document) -> Option<Note> {
    let edits = Some(raw(saved).get_array("edits").ok()?.to_owned());
    Some(Note { edits, ..unread(saved)? })
}

fn unread(saved: &Document) -> Option<Note> {
    Some(Note { number: saved.get_document("_id").ok()?.get_i64("number").ok()?, edits: None })
}

fn read_edit(saved: &RawDocument) -> Option<(Key, Fields)> {
    let namespace = u16::try_from(saved.get_i32("ns").ok()?).ok()?;
    let names = |names: &RawArray| names.into_iter().filter_map(|name| Some(name.ok()?.as_str()?.into())).collect();
    let fields = match saved.get_array("fields") {
        Ok(array) => Fields::Some { names: names(array), may_add: saved.get_bool("may_add").unwrap_or(true) },
        Err(_) => Fields::All,
    };
    let id = opaque::id_of_nested(saved.get("id").ok()??)?;
    Some((Key::new(namespace, id.as_raw_bson_ref()), fields))
}

#[cfg(test)]
mod tests {
    use super::super::saved::first;
    use super::*;
    use crate::rules::names::Zone;

    fn edits() -> [(Key, Fields); 3] {
        let key = |namespace, id| Key::new(namespace, RawBson::Int32(id).as_raw_bson_ref());
        let some =
            |names: &[&str], may_add| Fields::Some { names: names.iter().map(|&name| name.into()).collect(), may_add };
        [(key(0, 1), Fields::All), (key(3, 2), some(&["a", "b"], true)), (key(0, 3), some(&[], false))]
    }

    fn note(number: i64) -> Note {
        let ids = (1..).map(RawBson::Int32);
        let edits =
            edits().into_iter().zip(ids).map(|((key, fields), id)| Edit { key, id, fields, is_uncertain: false });
        Note::new(number, &edits.collect::<Vec<_>>())
    }

    #[test]
    fn a_note_in_the_checkpoint_is_read_as_it_was_saved() {
        let read = Note::read(&note(5).to_raw()).expect("a note");
        assert_eq!((read.number, read.edits()), (5, Some(edits().to_vec())));
    }

    #[test]
    fn a_note_that_is_a_document_is_read_as_it_was_saved() {
        let link = LinkName::downlink(&Zone::new("DFW"));
        let read = read(&first(&note(5).save(&link), "documents")).expect("a note");
        assert_eq!((read.number, read.edits()), (5, Some(edits().to_vec())));
    }

    #[test]
    fn a_checkpoint_has_room_for_some_notes_only() {
        let mut checkpoint = Checkpoint::default();
        while note(1).fits_into(&checkpoint) {
            checkpoint.notes.push(note(1));
        }
        let bytes = note(1).bytes();
        assert_eq!(checkpoint.notes.len(), BYTES_IN_CHECKPOINT / bytes);
    }
}
