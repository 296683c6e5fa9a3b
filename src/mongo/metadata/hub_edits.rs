//! Saved notes of hub edits (see [`crate::rules::conflicts`]): one per transaction that holds any. Small ones are saved in the
//! checkpoint itself, which costs no round trip of its own; others are documents in `hub_edits`.

use bson::raw::{RawArray, RawArrayBuf, RawBson, RawDocument, RawDocumentBuf};
use bson::{Document, doc, rawdoc};

use super::checkpoints::Checkpoint;
use crate::mongo::error::Error;
use crate::mongo::server::Server;
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::names::Link;

/// A hub edit as it is saved.
#[derive(Debug)]
pub(crate) struct Edit {
    /// Which document.
    pub(crate) key: Key,
    /// Its `_id`.
    pub(crate) id: RawBson,
    /// The fields it touched.
    pub(crate) fields: Fields,
}

/// Notes in the checkpoint have at most so many bytes together.
const BYTES_IN_CHECKPOINT: usize = 8_000;

/// A saved note.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// Its number.
    pub(crate) number: i64,
    /// The edits, as they are saved.
    edits: RawArrayBuf,
}

impl Note {
    /// A note of these edits under this number, which must be new.
    pub(crate) fn new(number: i64, edits: &[Edit]) -> Self {
        let mut array = RawArrayBuf::new();
        for edit in edits {
            let mut saved = rawdoc! { "ns": i32::from(edit.key.namespace()), "id": edit.id.as_raw_bson_ref() };
            if let Fields::Some { names, may_add } = &edit.fields {
                let names: RawArrayBuf = names.iter().map(|name| &**name).collect();
                saved.append(bson::raw::cstr!("fields"), names);
                saved.append(bson::raw::cstr!("may_add"), *may_add);
            }
            array.push(saved);
        }
        Self { number, edits: array }
    }

    /// Whether the checkpoint has room for it.
    pub(crate) fn fits_into(&self, checkpoint: &Checkpoint) -> bool {
        let notes = checkpoint.notes.iter().chain([self]);
        notes.map(|note| note.edits.as_bytes().len()).sum::<usize>() <= BYTES_IN_CHECKPOINT
    }

    /// The documents, and the fields that were touched.
    pub(crate) fn edits(&self) -> Vec<(Key, Fields)> {
        self.edits.into_iter().filter_map(|edit| read_edit(edit.ok()?.as_document()?)).collect()
    }

    /// As it is saved in the checkpoint.
    pub(super) fn to_raw(&self) -> RawDocumentBuf {
        rawdoc! { "number": self.number, "edits": self.edits.clone() }
    }

    pub(super) fn read(saved: &RawDocument) -> Option<Self> {
        Some(Self { number: saved.get_i64("number").ok()?, edits: saved.get_array("edits").ok()?.to_owned() })
    }

    /// The statement that saves it as a document of its own.
    pub(crate) fn save(&self, link: &Link) -> RawDocumentBuf {
        rawdoc! {
            "insert": "hub_edits",
            "documents": [{ "_id": { "link": link.to_string(), "number": self.number }, "edits": self.edits.clone() }],
        }
    }
}

/// The statement that deletes all notes up to this number.
pub(crate) fn delete(link: &Link, up_to: i64) -> RawDocumentBuf {
    rawdoc! {
        "delete": "hub_edits",
        "deletes": [{ "q": { "_id.link": link.to_string(), "_id.number": { "$lte": up_to } }, "limit": 0 }],
    }
}

/// Reads all notes of a link that are documents of their own, in the order of their numbers.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn load(server: &Server, link: &Link) -> Result<Vec<Note>, Error> {
    let mut notes = Vec::new();
    let mut after = i64::MIN;
    loop {
        let find = doc! {
            "find": "hub_edits", "filter": { "_id.link": link.to_string(), "_id.number": { "$gt": after } },
            "sort": { "_id.number": 1 }, "limit": 100, "singleBatch": true, "readConcern": { "level": "majority" },
        };
        let reply = server.run("reading saved hub edits", &server.metadata(), find).await?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let before = notes.len();
        notes.extend(batch.into_iter().flatten().filter_map(bson::Bson::as_document).filter_map(read));
        match notes.last() {
            Some(Note { number, .. }) if notes.len() > before => after = *number,
            _ => return Ok(notes),
        }
    }
}

fn read(saved: &Document) -> Option<Note> {
    let number = saved.get_document("_id").ok()?.get_i64("number").ok()?;
    let saved = crate::mongo::server::raw(saved);
    Some(Note { number, edits: saved.get_array("edits").ok()?.to_owned() })
}

fn read_edit(saved: &RawDocument) -> Option<(Key, Fields)> {
    let namespace = u16::try_from(saved.get_i32("ns").ok()?).ok()?;
    let names = |names: &RawArray| names.into_iter().filter_map(|name| Some(name.ok()?.as_str()?.into())).collect();
    let fields = match saved.get_array("fields") {
        Ok(array) => Fields::Some { names: names(array), may_add: saved.get_bool("may_add").unwrap_or(true) },
        Err(_) => Fields::All,
    };
    Some((Key::new(namespace, saved.get("id").ok()??), fields))
}
