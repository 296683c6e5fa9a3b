//! Saved notes of hub edits (see [`crate::sync::conflicts`]): one document per transaction that holds any.

use bson::raw::{RawArrayBuf, RawBson, RawDocumentBuf};
use bson::{Bson, Document, doc, rawdoc};

use super::error::Error;
use super::server::Server;
use crate::sync::fields::Fields;
use crate::sync::key::Key;
use crate::sync::names::Link;

/// A hub edit as it is saved.
#[derive(Debug)]
pub struct Edit {
    /// Which document.
    pub key: Key,
    /// Its `_id`.
    pub id: RawBson,
    /// The fields it touched.
    pub fields: Fields,
}

/// The statement that saves these edits under this number, which must be new.
pub fn save(link: &Link, number: i64, edits: &[Edit]) -> RawDocumentBuf {
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
    rawdoc! {
        "insert": "hub_edits",
        "documents": [{ "_id": { "link": link.to_string(), "number": number }, "edits": array }],
    }
}

/// The statement that deletes all notes up to this number.
pub fn delete(link: &Link, up_to: i64) -> RawDocumentBuf {
    rawdoc! {
        "delete": "hub_edits",
        "deletes": [{ "q": { "_id.link": link.to_string(), "_id.number": { "$lte": up_to } }, "limit": 0 }],
    }
}

/// A saved note.
#[derive(Debug)]
pub struct Note {
    /// Its number.
    pub number: i64,
    /// The documents, and the fields that were touched.
    pub edits: Vec<(Key, Fields)>,
}

/// Reads all notes of a link, in the order of their numbers.
///
/// # Errors
/// If the server does not answer.
pub async fn load(server: &Server, link: &Link) -> Result<Vec<Note>, Error> {
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
        notes.extend(batch.into_iter().flatten().filter_map(Bson::as_document).filter_map(read));
        match notes.last() {
            Some(Note { number, .. }) if notes.len() > before => after = *number,
            _ => return Ok(notes),
        }
    }
}

fn read(saved: &Document) -> Option<Note> {
    let number = saved.get_document("_id").ok()?.get_i64("number").ok()?;
    let edits = saved.get_array("edits").ok()?.iter().filter_map(Bson::as_document);
    Some(Note { number, edits: edits.filter_map(read_edit).collect() })
}

fn read_edit(saved: &Document) -> Option<(Key, Fields)> {
    let id = super::server::raw(&doc! { "id": saved.get("id")? });
    let namespace = u16::try_from(saved.get_i32("ns").ok()?).ok()?;
    let fields = match saved.get_array("fields") {
        Ok(names) => Fields::Some {
            names: names.iter().filter_map(Bson::as_str).map(Box::from).collect(),
            may_add: saved.get_bool("may_add").unwrap_or(true),
        },
        Err(_) => Fields::All,
    };
    Some((Key::new(namespace, id.get("id").ok()??), fields))
}
