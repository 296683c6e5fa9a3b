//! Our own collections, in the metadata database (`_syncmetadata` by default) of every server.
//!
//! | collection | used at | one document for each |
//! |---|---|---|
//! | [`checkpoints`] | hub, spokes | link that writes to the server |
//! | [`sessions`] | hub, spokes | session of our own transactions |
//! | [`dead_letters`] | hub, spokes | document that the server refuses from a link |
//! | [`dropped_letters`](dead_letters) | hub, spokes | document whose dead letter an operator has dropped |
//! | [`hub_edits`] | spokes | transaction with more hub edits than the checkpoint has room for |
//! | [`foreign`] | spokes | document that an application wrote in a zone of another spoke |
//! | [`set_aside`] | hub, spokes | version of a document that a link deleted or replaced |
//! | [`unsettled`] | hub, spokes | document that a link did not find as expected |
//! | [`identity`], [`format`] | hub, spokes | replica set: its identity, and at the hub the metadata's version |
//! | [`verifications`] | hub | part of an unfinished verification |
//! | [`members`] | hub | process of the cluster |
//! | [`leases`] | hub | spoke: the process that runs it |
//! | [`wishes`] | hub | operator's request to the process that runs a spoke |
//! | [`ticks`] | hub, spokes | counter that advances the cluster time |
//!
//! Each module shows the fields of a document as `field type meaning`. Field names are saved data: a renamed field
//! makes older documents unreadable. No collection has an index besides `_id`. [`by_document`] reads the collections
//! that have a document for each document of an application.

pub(crate) mod by_document;
pub(crate) mod checkpoints;
pub(crate) mod dead_letters;
pub(crate) mod foreign;
pub(crate) mod format;
pub(crate) mod hub_edits;
pub(crate) mod identity;
pub(crate) mod leases;
pub(crate) mod members;
pub(crate) mod sessions;
pub(crate) mod set_aside;
pub(crate) mod ticks;
pub(crate) mod unsettled;
pub(crate) mod verifications;
pub(crate) mod wishes;

use std::collections::HashSet;
use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};
use bson::{Bson, DateTime, Document, doc};

use super::error::{Error, codes};
use super::server::{Server, first_batch};
use crate::rules::size::MOST_COMMAND_BYTES;

const CHECKPOINTS: &str = "checkpoints";
const SESSIONS: &str = "sessions";
const DEAD_LETTERS: &str = "dead_letters";
const DROPPED_LETTERS: &str = "dropped_letters";
const HUB_EDITS: &str = "hub_edits";
const FOREIGN: &str = "foreign";
const IDENTITY: &str = "identity";
const LEASES: &str = "leases";
const MEMBERS: &str = "members";
const SET_ASIDE: &str = "set_aside";
const TICKS: &str = "ticks";
const UNSETTLED: &str = "unsettled";
const VERIFICATIONS: &str = "verifications";
const WISHES: &str = "wishes";

/// The collection in which `check` tries what a link writes.
pub(crate) const TRIED: &str = TICKS;

const ALL: [&str; 14] = [
    CHECKPOINTS,
    SESSIONS,
    DEAD_LETTERS,
    DROPPED_LETTERS,
    HUB_EDITS,
    FOREIGN,
    IDENTITY,
    LEASES,
    MEMBERS,
    SET_ASIDE,
    TICKS,
    UNSETTLED,
    VERIFICATIONS,
    WISHES,
];

/// Creates all missing collections, so that no transaction has to. Fails if a collection is missing and the server does
/// not create it.
pub(crate) async fn prepare(server: &Server) -> Result<(), Error> {
    let present = present(server).await?;
    for collection in ALL.into_iter().filter(|collection| !present.contains(*collection)) {
        match server.run("creating the metadata collections", &server.metadata(), doc! { "create": collection }).await {
            Err(error) if error.code() != Some(codes::NAMESPACE_EXISTS) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The names of the present collections: one question instead of a refused `create` for each. It needs no privilege of
/// its own (the manual's "listCollections", Required Access). Empty if the server refuses the question.
async fn present(server: &Server) -> Result<HashSet<String>, Error> {
    let list = doc! {
        "listCollections": 1, "nameOnly": true, "authorizedCollections": true,
        "filter": { "name": { "$in": ALL.to_vec() } },
    };
    match server.run("looking for the metadata collections", &server.metadata(), list).await {
        Ok(reply) => Ok(first_batch(&reply).filter_map(|one| one.get_str("name").ok()).map(str::to_owned).collect()),
        Err(error) if error.code().is_some() => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

/// All majority-committed documents of a collection that match the filter, in the order of `_id`.
async fn all_of(
    server: &Server,
    collection: &str,
    filter: Document,
    projection: Document,
) -> Result<Vec<Document>, Error> {
    let mut all: Vec<Document> = Vec::new();
    loop {
        let after = all.last().and_then(|last| last.get("_id")).cloned();
        let page = page_of(server, collection, filter.clone(), projection.clone(), after, PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// Documents in a page of [`page_of`], at most.
const PAGE: usize = 5_000;

/// A page of at most `most` majority-committed documents of a collection that match the filter, in the order of `_id`.
/// The page starts after the last `_id` of the page before, so no cursor stays open at the server. An empty page is the
/// end.
async fn page_of(
    server: &Server,
    collection: &str,
    filter: Document,
    projection: Document,
    after: Option<Bson>,
    most: usize,
) -> Result<Vec<Document>, Error> {
    let mut conditions = vec![filter];
    conditions.extend(after.map(|after| doc! { "_id": { "$gt": after } }));
    let find = doc! {
        "find": collection, "filter": { "$and": conditions }, "projection": projection, "sort": { "_id": 1 },
        "hint": { "_id": 1 }, "batchSize": i64::try_from(most).unwrap_or(1), "singleBatch": true,
        "readConcern": { "level": "majority" },
    };
    let reply = server.run("reading the metadata collections", &server.metadata(), find).await?;
    Ok(first_batch(&reply).cloned().collect())
}

/// The command that deletes every document that matches the filter. By the index on `_id`, like every query of this
/// room: a server with `notablescan` refuses others.
fn delete_all(collection: &str, filter: Document) -> Document {
    doc! { "delete": collection, "deletes": [{ "q": filter, "limit": 0, "hint": { "_id": 1 } }] }
}

/// The write concern of commands outside of transactions. The server gives up after 20 s, before
/// [`CALL_LIMIT`](super::server::CALL_LIMIT) ends the call. After a write concern error the write is applied, but may
/// still be rolled back.
fn majority() -> Document {
    doc! { "w": "majority", "wtimeout": 20_000 }
}

/// Runs a command of this room outside of a transaction, with write concern majority. `doing` begins the error's text.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn run(server: &Server, doing: &'static str, command: &RawDocumentBuf) -> Result<(), Error> {
    for mut command in in_parts(command) {
        command.append(cstr!("writeConcern"), raw(&majority()));
        // Copies of documents may hold text that is no UTF-8.
        server.run_raw(doing, &server.metadata(), command).await?;
    }
    Ok(())
}

/// The write command of this room in as many commands as its size needs. A command has its name first, and then its
/// statements.
pub(crate) fn in_parts(command: &RawDocumentBuf) -> Vec<RawDocumentBuf> {
    parts(command, MOST_COMMAND_BYTES).unwrap_or_else(|| vec![command.clone()])
}

fn parts(command: &RawDocumentBuf, most_bytes: usize) -> Option<Vec<RawDocumentBuf>> {
    if command.as_bytes().len() <= most_bytes {
        return None;
    }
    let mut fields = command.iter_elements().flatten();
    let (name, list) = (fields.next()?, fields.next()?);
    let RawBsonRef::Array(statements) = list.value().ok()? else { return None };
    let mut waiting = statements.into_iter().flatten().peekable();
    let mut commands = Vec::new();
    while let Some(first) = waiting.next() {
        let mut part = RawArrayBuf::new();
        part.push(first);
        let fits = |part: &RawArrayBuf, next: &RawBsonRef<'_>| {
            let next = next.as_document().map_or(0, |next| next.as_bytes().len());
            part.as_bytes().len() + next <= most_bytes
        };
        while let Some(next) = waiting.next_if(|next| fits(&part, next)) {
            part.push(next);
        }
        let mut command = RawDocumentBuf::new();
        command.append(name.key(), name.value().ok()?);
        command.append(list.key(), part);
        commands.push(command);
    }
    Some(commands)
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).expect("our own documents are valid")
}

/// The time this long before now, by the clock of the process.
fn ago(duration: Duration) -> DateTime {
    let milliseconds = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    DateTime::from_millis(DateTime::now().timestamp_millis().saturating_sub(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn a_command_that_is_too_large_becomes_several_of_the_same_statements() {
        let statement = |number: i32| rawdoc! { "q": { "_id": number }, "limit": 1 };
        let command = rawdoc! { "delete": TICKS, "deletes": [statement(1), statement(2), statement(3)] };
        assert_eq!(in_parts(&command), vec![command.clone()]);
        let of = |numbers: &[i32]| {
            let statements: RawArrayBuf = numbers.iter().map(|number| statement(*number)).collect();
            rawdoc! { "delete": TICKS, "deletes": statements }
        };
        let two = of(&[1, 2]).as_bytes().len();
        assert_eq!(parts(&command, two), Some(vec![of(&[1, 2]), of(&[3])]));
        assert_eq!(parts(&command, 1), Some(vec![of(&[1]), of(&[2]), of(&[3])]), "a statement is never left out");
    }
}

#[cfg(test)]
mod saved {
    use bson::{Bson, Document, RawDocumentBuf};

    /// The first statement of an `update`, `insert` or `delete` command.
    pub(super) fn first(command: &RawDocumentBuf, statements: &str) -> Document {
        let command = Document::try_from(command).expect("our own commands are valid");
        let statements = command.get_array(statements).expect("the command has statements");
        statements.first().and_then(Bson::as_document).expect("there is one statement at least").clone()
    }

    /// The document that the first statement of an `update` command upserts.
    pub(super) fn upserted(command: &RawDocumentBuf) -> Document {
        let statement = first(command, "updates");
        let mut document = statement.get_document("q").expect("a condition").clone();
        let update = statement.get_document("u").expect("an update");
        for fields in ["$set", "$setOnInsert"].iter().filter_map(|operator| update.get_document(operator).ok()) {
            document.extend(fields.clone());
        }
        document
    }
}
