//! Our own documents about one document of an application: `_id: { link, ns, document }`, or `{ ns, document }` where
//! the links share them. Those of a link and a collection follow each other in the order of `_id`, because `link` and
//! `ns` come first.

use std::collections::HashSet;

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf, cstr};
use bson::{Bson, Document, doc, rawdoc};

use super::{PAGE, all_of, page_of, raw};
use crate::mongo::error::Error;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::{LinkName, Namespace};
use crate::rules::opaque;

/// The query for our document about an application's document.
pub(super) fn id(link: Option<&LinkName>, namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    let mut id = RawDocumentBuf::new();
    if let Some(link) = link {
        id.append(cstr!("link"), link.to_string());
    }
    id.append(cstr!("ns"), namespace.to_string());
    id.append(cstr!("document"), opaque::nested_id(document));
    rawdoc! { "_id": id }
}

/// The `_id` of the application's document.
pub(super) fn document_id(saved: &Document) -> Option<RawBson> {
    opaque::id_of_nested(raw(saved).get_document("_id").ok()?.get("document").ok()??)
}

/// Reads a document of which only the `_id` counts.
pub(super) fn named(namespace: u16, saved: &Document) -> Option<(Key, RawBson)> {
    let id = document_id(saved)?;
    Some((Key::new(namespace, id.as_raw_bson_ref()), id))
}

/// One of our own collections, as it is read.
pub(super) struct Kind<T> {
    pub(super) collection: &'static str,
    /// The fields that are read.
    pub(super) fields: Document,
    /// Reads one document, by the number of the application's collection.
    pub(super) read: fn(u16, &Document) -> Option<(Key, T)>,
}

impl<T> Kind<T> {
    /// All of our documents of a link, or of all links, a page at a time.
    pub(super) fn pages<'s>(self, server: &'s Server, link: Option<&'s LinkName>) -> Pages<'s, T> {
        Pages { server, link, kind: self, namespace: 0, after: None }
    }
}

/// Our own documents, a page at a time: there may be more than fit into memory.
pub(crate) struct Pages<'s, T> {
    server: &'s Server,
    link: Option<&'s LinkName>,
    kind: Kind<T>,
    /// Number of the application's collection.
    namespace: u16,
    /// `_id` of the last document of the page before, in the present collection.
    after: Option<Bson>,
}

impl<T> Pages<'_, T> {
    /// The next documents; `None` at the end.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<(Key, T)>>, Error> {
        while let Some(namespace) = self.server.namespaces().get(usize::from(self.namespace)) {
            let Kind { collection, fields, read } = &self.kind;
            let range = range(self.link, namespace);
            let saved = page_of(self.server, collection, range, fields.clone(), self.after.take(), PAGE).await?;
            self.after = saved.last().and_then(|last| last.get("_id")).cloned();
            if self.after.is_some() {
                return Ok(Some(saved.iter().filter_map(|saved| read(self.namespace, saved)).collect()));
            }
            self.namespace += 1;
        }
        Ok(None)
    }

    /// Leaves the rest of the present collection out.
    pub(super) fn leave_collection(&mut self) {
        self.namespace += 1;
        self.after = None;
    }
}

/// The condition on `_id` for the documents about one collection.
fn range(link: Option<&LinkName>, namespace: &Namespace) -> Document {
    let bound = |document: Bson| {
        let mut bound = Document::new();
        bound.extend(link.map(|link| ("link".to_owned(), link.to_string().into())));
        bound.extend([("ns".to_owned(), namespace.to_string().into()), ("document".to_owned(), document)]);
        bound
    };
    doc! { "_id": { "$gt": bound(Bson::MinKey), "$lt": bound(Bson::MaxKey) } }
}

/// Those of these documents about which the collection has a document that matches the condition `such`.
///
/// # Errors
/// If the server does not answer.
pub(super) async fn among(
    server: &Server,
    collection: &str,
    link: Option<&LinkName>,
    wanted: &Wanted<'_>,
    such: &Document,
) -> Result<HashSet<Key>, Error> {
    let mut found = HashSet::new();
    for (number, namespace) in (0u16..).zip(server.namespaces()) {
        let here: Vec<_> = wanted.iter().filter(|(key, _)| key.namespace() == number).collect();
        if here.is_empty() {
            continue;
        }
        // Mostly the collection has none at all, or fewer documents than are asked for.
        let (mut range, most) = (range(link, namespace), here.len().min(PAGE));
        range.extend(such.clone());
        let mut saved = page_of(server, collection, range, doc! { "_id": 1 }, None, most).await?;
        // A reply of many bytes may end before the range does.
        let bytes: usize = saved.iter().map(|saved| raw(saved).as_bytes().len()).sum();
        if saved.len() >= most || bytes >= QUERY_BYTES {
            let ids = here.into_iter().filter_map(|(_, document)| {
                let query = Document::try_from(id(link, namespace, *document)).ok()?;
                query.get_document("_id").ok().cloned()
            });
            saved = by_ids(server, collection, ids.collect(), such).await?;
        }
        let named = saved.iter().filter_map(|saved| named(number, saved)).map(|(key, _)| key);
        found.extend(named.filter(|key| wanted.contains_key(key)));
    }
    Ok(found)
}

/// Bytes of `_id`s in one query, at most. A single `_id` may be larger.
const QUERY_BYTES: usize = 4_000_000;

/// The `_id`s of all majority-committed documents of a collection with one of these `_id`s that match the condition
/// `such`, in as many queries as their size needs.
async fn by_ids(
    server: &Server,
    collection: &str,
    ids: Vec<Document>,
    such: &Document,
) -> Result<Vec<Document>, Error> {
    let (mut found, mut some, mut bytes) = (Vec::new(), Vec::new(), 0);
    let last = ids.len();
    for (number, id) in (1..).zip(ids) {
        bytes += raw(&id).as_bytes().len();
        some.push(id);
        if bytes >= QUERY_BYTES || number == last {
            let mut filter = doc! { "_id": { "$in": std::mem::take(&mut some) } };
            filter.extend(such.clone());
            found.extend(all_of(server, collection, filter, doc! { "_id": 1 }).await?);
            bytes = 0;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::names::Zone;

    #[test]
    fn a_document_lies_in_the_range_of_its_link_and_collection_alone() {
        let (link, namespace) = (LinkName::uplink(&Zone::new("DFW")), Namespace::parse("app.orders").expect("valid"));
        for link in [None, Some(&link)] {
            let query = Document::try_from(id(link, &namespace, RawBsonRef::Int32(7))).expect("valid");
            let named: Vec<&String> = query.get_document("_id").expect("a document").keys().collect();
            let range = range(link, &namespace);
            for bound in ["$gt", "$lt"] {
                let bound = range.get_document("_id").and_then(|range| range.get_document(bound)).expect("a bound");
                assert_eq!(bound.keys().collect::<Vec<_>>(), named);
            }
            assert_eq!(document_id(&query), Some(RawBson::Int32(7)));
        }
    }
}
