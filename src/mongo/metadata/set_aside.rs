//! Copies of versions of documents that a link deleted or replaced by [inference](crate::rules::inference), for a person
//! to restore: in a copy, in a repair, in a retry of a dead letter, in a purge, or in a decision about an unsettled
//! document. Changes of a spoke's applications that found no document at the hub any more are kept, too.
//!
//! ```text
//! _id       document  { ns: string, document: any, version: objectId }: collection as `database.collection`, `_id` of
//!                     the document, and a number for each version
//! at        date      time at which the copy was made, by the process's clock
//! reason    string    why the version was deleted or replaced
//! document  document  the whole document; absent if larger than 16,000,000 bytes
//! bytes     binary    in place of `document`: a document that is nested too deeply to stand in another one
//! change    document  in place of `document`: the change event of a change that found no document; absent if larger
//!                     than 16,000,000 bytes
//! ```
//!
//! The copies are written in the transaction that deletes or replaces the originals; copies of foreign documents that
//! are gone already, when the uplink registers them. Every start of a link deletes
//! copies older than 30 days at the link's destination.
//!
//! Index: only `_id`. The delete by `at` scans the collection.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, doc, rawdoc};

use super::by_document::document_id;
use super::{SET_ASIDE, ago, all_of, delete_all};
use crate::mongo::error::Error;
use crate::mongo::server::Server;
use crate::mongo::transaction;
use crate::rules::names::Namespace;
use crate::rules::opaque;

/// Age at which a copy is deleted: 30 days.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Size in bytes above which only the `_id` is kept. With the fields around it, a larger document could exceed the
/// server's limit of 16 MiB.
const LARGEST: usize = 16_000_000;

/// Most bytes of documents in one command, unless a single document has more. A line of 10 Mbit/s carries 15 MB in 12
/// s, well within [`CALL_LIMIT`](crate::mongo::server::CALL_LIMIT).
const COMMAND_BYTES: usize = 15_000_000;

/// A version of a document, or a change, to be set aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aside<'a> {
    pub(crate) namespace: &'a Namespace,
    /// `_id` of the document.
    pub(crate) id: RawBsonRef<'a>,
    pub(crate) content: Content<'a>,
    pub(crate) reason: &'a str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Document(&'a RawDocument),
    /// A change event.
    Change(&'a RawDocument),
}

/// The commands that save copies, for the transaction that deletes or replaces the originals.
pub(crate) fn keep(versions: &[Aside<'_>]) -> Vec<RawDocumentBuf> {
    let (mut commands, mut waiting) = (Vec::new(), versions);
    while !waiting.is_empty() {
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|version| {
            bytes += version.bytes();
            bytes <= COMMAND_BYTES
        });
        let (now, later) = waiting.split_at(fits.count().max(1));
        waiting = later;
        let documents: RawArrayBuf = now.iter().map(Aside::saved).collect();
        commands.push(rawdoc! { "insert": SET_ASIDE, "documents": documents });
    }
    commands
}

impl Aside<'_> {
    fn bytes(&self) -> usize {
        let (Content::Document(content) | Content::Change(content)) = self.content;
        content.as_bytes().len()
    }

    fn saved(&self) -> RawDocumentBuf {
        let document = opaque::nested_id(self.id);
        let id = rawdoc! { "ns": self.namespace.to_string(), "document": document, "version": ObjectId::new() };
        let mut saved = rawdoc! { "_id": id, "at": DateTime::now(), "reason": self.reason };
        if self.bytes() <= LARGEST {
            match self.content {
                Content::Document(document) if opaque::is_deep(document) => {
                    let bytes = document.as_bytes().to_vec();
                    saved.append(cstr!("bytes"), Binary { subtype: BinarySubtype::Generic, bytes });
                }
                Content::Document(document) => saved.append(cstr!("document"), RawBsonRef::Document(document)),
                Content::Change(event) => saved.append(cstr!("change"), opaque::storable(event)),
            }
        }
        saved
    }
}

/// A saved copy without its content.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// `_id` of the document.
    pub(crate) id: Bson,
    pub(crate) version: ObjectId,
    pub(crate) at: DateTime,
    pub(crate) reason: String,
    /// A change that found no document, in place of a version.
    pub(crate) is_change: bool,
}

/// All copies at the server, in the order of collection and `_id`.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn list(server: &Server) -> Result<Vec<Saved>, Error> {
    let fields = doc! { "at": 1, "reason": 1, "change.operationType": 1 };
    let saved = all_of(server, SET_ASIDE, doc! {}, fields).await?;
    Ok(saved.iter().filter_map(read).collect())
}

fn read(saved: &Document) -> Option<Saved> {
    let id = saved.get_document("_id").ok()?;
    Some(Saved {
        namespace: id.get_str("ns").ok()?.to_owned(),
        id: Bson::try_from(document_id(saved)?).ok()?,
        version: id.get_object_id("version").ok()?,
        at: *saved.get_datetime("at").ok()?,
        reason: saved.get_str("reason").unwrap_or_default().to_owned(),
        is_change: saved.contains_key("change"),
    })
}

/// The copy with this version, whole.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn find(server: &Server, version: ObjectId) -> Result<Option<RawDocumentBuf>, Error> {
    let copies = server.metadata().collection::<RawDocumentBuf>(SET_ASIDE);
    let find = async { copies.find_one(doc! { "_id.version": version }).await };
    server.bounded("reading a copy that was set aside", find).await
}

/// Inserts the document of a copy at the copy's server, and deletes the copy, in one transaction. The insert is like an
/// application's, so the links carry it. Returns [`Error::Refused`] if the server has a document of the same `_id`, and
/// an error for a copy without a document.
pub(crate) async fn restore(server: &Server, saved: &RawDocument) -> Result<(), Error> {
    let without = || server.unsuitable("the copy has no document: it is a change, or was too large to be kept");
    let Ok(id) = saved.get_document("_id") else { return Err(without()) };
    let document = match (saved.get_document("document"), saved.get_binary("bytes")) {
        (Ok(document), _) => document,
        (_, Ok(deep)) => RawDocument::from_bytes(deep.bytes).map_err(|error| server.malformed(error))?,
        _ => return Err(without()),
    };
    let namespace = id.get_str("ns").ok().and_then(|name| Namespace::parse(name).ok()).ok_or_else(without)?;
    let insert = rawdoc! {
        "insert": namespace.collection.as_str(), "documents": [RawBsonRef::Document(document)],
    };
    let delete = rawdoc! { "delete": SET_ASIDE, "deletes": [{ "q": { "_id": RawBsonRef::Document(id) }, "limit": 1 }] };
    let metadata = server.metadata().name().to_owned();
    let commands = [(namespace.database.as_str(), insert), (metadata.as_str(), delete)];
    let session = server.bounded("starting a session", async { server.client().start_session().await });
    transaction::run(server, &mut session.await?, &commands, |_, _| None).await.map(drop)
}

/// Deletes copies older than 30 days.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn forget_old(server: &Server) -> Result<(), Error> {
    let delete = delete_all(SET_ASIDE, doc! { "at": { "$lt": ago(KEPT) } });
    server.run("deleting old documents that were set aside", &server.metadata(), delete).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::saved::first;
    use super::*;
    use bson::raw::RawBson;

    fn namespace() -> Namespace {
        Namespace { database: "app".to_owned(), collection: "orders".to_owned() }
    }

    fn kept(content: Content<'_>) -> Document {
        let namespace = namespace();
        let version = Aside { namespace: &namespace, id: RawBsonRef::Int32(7), content, reason: "deleted" };
        first(&keep(&[version])[0], "documents")
    }

    #[test]
    fn a_document_is_kept_whole_unless_the_copy_could_exceed_the_servers_limit() {
        let small = rawdoc! { "_id": 7, "text": "a" };
        let saved = kept(Content::Document(&small));
        assert_eq!(document_id(&saved), Some(RawBson::Int32(7)));
        assert_eq!(saved.get_document("document").ok(), Document::try_from(small).ok().as_ref());
        let saved = kept(Content::Document(&rawdoc! { "_id": 7, "text": "a".repeat(LARGEST) }));
        assert_eq!((document_id(&saved), saved.contains_key("document")), (Some(RawBson::Int32(7)), false));
    }

    #[test]
    fn every_version_of_a_document_is_kept() {
        let (namespace, document) = (namespace(), rawdoc! { "_id": 7 });
        let content = Content::Document(&document);
        let version = Aside { namespace: &namespace, id: RawBsonRef::Int32(7), content, reason: "replaced" };
        let saved = Document::try_from(keep(&[version, version]).remove(0)).expect("valid");
        let saved = saved.get_array("documents").expect("documents");
        let ids: Vec<_> = saved.iter().map(|saved| saved.as_document().expect("valid").get("_id")).collect();
        assert!(ids.len() == 2 && ids[0] != ids[1]);
    }

    #[test]
    fn large_versions_go_in_several_commands() {
        let (namespace, document) = (namespace(), rawdoc! { "text": "a".repeat(COMMAND_BYTES / 2) });
        let content = Content::Document(&document);
        let version = Aside { namespace: &namespace, id: RawBsonRef::Int32(7), content, reason: "replaced" };
        assert_eq!(keep(&[version; 3]).len(), 3);
    }
}
