//! Foreign documents: documents of other zones, written by applications at a spoke. Foreign documents stay at the
//! spoke, and a reconcile must not mistake them for documents deleted at the hub. The uplink therefore registers a
//! foreign document at the spoke before the checkpoint passes the insert. The registration ends in the transaction that
//! brings the hub's document of the same `_id`.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf};

use super::pair::REMEMBERED_DOCUMENTS;
use crate::mongo::error::Error;
use crate::mongo::metadata::set_aside::{self, Aside, Content};
use crate::mongo::metadata::{self, foreign};
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::Namespace;
use crate::rules::step::Step;

/// The documents of a spoke's register in memory, possibly with others: saves a query for each document.
#[derive(Debug, Default)]
pub(super) struct Known {
    keys: Mutex<Keys>,
    /// Held while a document is read and registered, and during each transaction of the downlink: a live change may be
    /// about another document than the one being registered.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Keys {
    some: HashSet<Key>,
    /// The register has more than [`REMEMBERED_DOCUMENTS`] documents: any document may be registered.
    any: bool,
}

impl Known {
    /// Reads the register, up to the limit.
    pub(super) async fn load(&self, spoke: &Server) -> Result<(), Error> {
        let mut pages = foreign::pages(spoke);
        while let Some(page) = pages.next().await? {
            self.add(page.into_iter().map(|(key, _)| key));
            if self.keys().any {
                break;
            }
        }
        Ok(())
    }

    /// Those of these documents that are in the register. Asks the server only beyond the limit, and gathers the
    /// documents only if any may be there.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(super) async fn among<'w>(
        &self,
        spoke: &Server,
        wanted: impl FnOnce() -> Wanted<'w>,
    ) -> Result<HashSet<Key>, Error> {
        if self.is_empty() {
            return Ok(HashSet::new());
        }
        let wanted = wanted();
        let known = {
            let keys = self.keys();
            (!keys.any).then(|| wanted.keys().filter(|key| keys.some.contains(*key)).cloned().collect())
        };
        match known {
            Some(known) => Ok(known),
            None => foreign::among(spoke, &wanted).await,
        }
    }

    /// These documents are, or will be, in the register.
    pub(super) fn add(&self, more: impl Iterator<Item = Key>) {
        let mut keys = self.keys();
        if keys.any {
            return;
        }
        keys.some.extend(more);
        if keys.some.len() > REMEMBERED_DOCUMENTS {
            *keys = Keys { some: HashSet::new(), any: true };
        }
    }

    /// True if no document can be in the register.
    pub(super) fn is_empty(&self) -> bool {
        let keys = self.keys();
        keys.some.is_empty() && !keys.any
    }

    pub(super) fn may_hold(&self, key: &Key) -> bool {
        let keys = self.keys();
        keys.any || keys.some.contains(key)
    }

    /// The statement that removes the documents of `steps` from the register. `None` if no document can be registered.
    pub(super) fn forgets<'s, 'a: 's>(
        &self,
        steps: impl Iterator<Item = &'s Step<'a>>,
        namespaces: &[Namespace],
    ) -> Option<RawDocumentBuf> {
        if self.is_empty() {
            return None;
        }
        let held = steps.filter(|step| self.may_hold(&step.key));
        let held: Vec<_> = held.map(|step| (&namespaces[usize::from(step.key.namespace())], step.id)).collect();
        (!held.is_empty()).then(|| foreign::forget(&held))
    }

    /// True if the document is known to be in the register.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.keys().some.contains(key)
    }

    /// Takes documents out of the register.
    pub(super) async fn end(&self, spoke: &Server, documents: &[(&Namespace, RawBsonRef<'_>)]) -> Result<(), Error> {
        if documents.is_empty() || self.is_empty() {
            return Ok(());
        }
        metadata::run(spoke, "forgetting foreign documents", &foreign::forget(documents)).await?;
        for (namespace, id) in documents {
            let number = spoke.namespaces().iter().position(|one| one == *namespace);
            if let Some(number) = number.and_then(|number| u16::try_from(number).ok()) {
                self.remove(&Key::new(number, *id));
            }
        }
        Ok(())
    }

    /// The document is no longer in the register.
    pub(super) fn remove(&self, key: &Key) {
        self.keys().some.remove(key);
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no document is being registered. None is, until the result is dropped.
    pub(super) async fn wait(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

/// Registers documents that an application wrote in zones of other spokes, except for documents that the hub has with
/// the same bytes. A document that the spoke no longer has as it was written is set aside.
pub(super) async fn register(
    known: &Known,
    spoke: &Server,
    hub: &Server,
    documents: &HashMap<Key, RawDocumentBuf>,
) -> Result<(), Error> {
    if documents.is_empty() {
        return Ok(());
    }
    let wanted = wanted(documents, hub)?;
    let at_hub = read::documents(hub, &wanted, None, When::NotBefore(hub.now().await?)).await?.documents;
    let turn = known.wait().await;
    let here = read::documents(spoke, &wanted, None, When::NotBefore(spoke.now().await?)).await?.documents;
    let version = |versions: &HashMap<Key, Option<RawDocumentBuf>>, key: &Key| versions.get(key).cloned().flatten();
    let zone = |document: Option<&RawDocumentBuf>| {
        document.and_then(|document| lookup::value(document, hub.partition_key()).map(RawBson::from))
    };
    // What the application wrote may be gone by now, by another document of the same `_id`.
    let is_replaced = |key: &Key| version(&here, key).as_ref() != documents.get(key);
    let is_there = |key: &Key| {
        let there = version(&here, key);
        there.is_some() && there != version(&at_hub, key) && zone(there.as_ref()) == zone(documents.get(key))
    };
    let wanted: Wanted<'_> =
        wanted.into_iter().filter(|(key, _)| version(&at_hub, key).as_ref() != documents.get(key)).collect();
    let replaced: Vec<_> = wanted.iter().filter(|(key, _)| is_replaced(key)).collect();
    let new: Vec<_> = wanted.iter().filter(|(key, _)| is_there(key)).collect();
    known.add(new.iter().map(|(key, _)| (*key).clone()));
    drop(turn);
    let versions = replaced.iter().filter_map(|(key, id)| {
        let content = Content::Document(documents.get(*key)?);
        Some(Aside { namespace: spoke.namespace(key.namespace()), id: **id, content, reason: REPLACED })
    });
    for statement in set_aside::keep(&versions.collect::<Vec<_>>()) {
        metadata::run(spoke, "setting foreign documents aside", &statement).await?;
    }
    if new.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = new.iter().map(|(key, id)| (spoke.namespace(key.namespace()), **id)).collect();
    metadata::run(spoke, "registering foreign documents", &foreign::register(&named)).await
}

/// The reason with which a foreign document is set aside that came at the same time as the hub's.
const REPLACED: &str = "written in another spoke's zone, and changed or replaced since";

/// Takes documents out of the register that hub and spoke have with the same bytes.
pub(super) async fn forget_known(known: &Known, hub: &Server, spoke: &Server) -> Result<(), Error> {
    let mut pages = foreign::pages(spoke);
    while let Some(registered) = pages.next().await? {
        let wanted: Wanted<'_> = registered.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
        let at_hub = read::documents(hub, &wanted, None, When::NotBefore(hub.now().await?)).await?.documents;
        let here = read::documents(spoke, &wanted, None, When::NotBefore(spoke.now().await?)).await?.documents;
        let is_equal = |key: &Key| at_hub.get(key).is_some_and(Option::is_some) && at_hub.get(key) == here.get(key);
        let equal = wanted.iter().filter(|(key, _)| is_equal(key));
        let equal: Vec<_> = equal.map(|(key, id)| (spoke.namespace(key.namespace()), *id)).collect();
        known.end(spoke, &equal).await?;
    }
    Ok(())
}

fn wanted<'d>(documents: &'d HashMap<Key, RawDocumentBuf>, server: &Server) -> Result<Wanted<'d>, Error> {
    let of = |(key, document): (&Key, &'d RawDocumentBuf)| {
        let id = document.get("_id").map_err(|error| server.malformed(error))?;
        Ok((key.clone(), id.unwrap_or(RawBsonRef::Null)))
    };
    documents.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::step::{Write, Zones};
    use bson::raw::RawBsonRef;

    fn key(id: i32) -> Key {
        Key::new(0, RawBsonRef::Int32(id))
    }

    fn step(id: i32) -> Step<'static> {
        let (id, write) = (RawBsonRef::Int32(id), Write::Delete);
        Step { event: 0, key: Key::new(0, id), id, zones: Zones::One("DFW"), write, hub_edit: None }
    }

    #[test]
    fn a_registered_document_leaves_the_register_with_the_hubs_document() {
        let (known, namespaces) = (Known::default(), [Namespace::parse("a.b").expect("valid")]);
        assert!(known.is_empty() && known.forgets([step(1)].iter(), &namespaces).is_none());
        known.add([key(1)].into_iter());
        assert!(known.forgets([step(2)].iter(), &namespaces).is_none());
        let statement = known.forgets([step(2), step(1)].iter(), &namespaces).expect("one may be there");
        assert_eq!(statement.get_array("deletes").expect("valid").into_iter().count(), 1);
    }

    #[test]
    fn beyond_the_limit_any_document_may_be_registered_and_none_is_kept() {
        let known = Known::default();
        known.add((0..=i32::try_from(REMEMBERED_DOCUMENTS).expect("few")).map(key));
        known.add([key(7)].into_iter());
        assert!(!known.is_empty() && known.may_hold(&key(-1)) && known.keys().some.is_empty());
    }
}
