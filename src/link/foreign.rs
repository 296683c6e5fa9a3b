//! Foreign documents: documents of other zones, written by applications at a spoke. Foreign documents stay at the
//! spoke, and a reconcile must not mistake them for documents deleted at the hub. The uplink therefore registers a
//! foreign document at the spoke before the checkpoint passes the insert. The registration ends in the transaction that
//! brings the hub's document of the same `_id`.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bson::raw::{RawBson, RawDocumentBuf};

use super::pair::REMEMBERED_DOCUMENTS;
use crate::mongo::error::Error;
use crate::mongo::metadata::{self, foreign};
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::Namespace;
use crate::rules::step::Step;

/// The documents of a spoke's register in memory, possibly with others: saves a query for each document.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    some: HashSet<Key>,
    /// The register has more than [`REMEMBERED_DOCUMENTS`] documents: any document may be registered.
    any: bool,
}

impl Known {
    pub(super) async fn load(&self, spoke: &Server) -> Result<(), Error> {
        self.add(foreign::registered(spoke).await?.into_keys());
        Ok(())
    }

    /// These documents are, or will be, in the register.
    pub(super) fn add(&self, more: impl Iterator<Item = Key>) {
        let mut keys = self.keys();
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
    pub(super) fn forgets(&self, steps: &[Step<'_>], namespaces: &[Namespace]) -> Option<RawDocumentBuf> {
        if self.is_empty() {
            return None;
        }
        let held = steps.iter().filter(|step| self.may_hold(&step.key));
        let held: Vec<_> = held.map(|step| (&namespaces[usize::from(step.key.namespace())], step.id)).collect();
        (!held.is_empty()).then(|| foreign::forget(&held))
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers documents of a spoke, except for documents known to the hub.
pub(super) async fn register(
    known: &Known,
    spoke: &Server,
    hub: &Server,
    documents: &[(Key, RawBson)],
) -> Result<(), Error> {
    if documents.is_empty() {
        return Ok(());
    }
    let wanted: Wanted<'_> = documents.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
    let field = Some(hub.partition_field());
    let at_hub = read::documents(hub, &wanted, field, When::NotBefore(hub.now().await?)).await?.documents;
    let new: Vec<_> = wanted.iter().filter(|(key, _)| !at_hub.get(*key).is_some_and(Option::is_some)).collect();
    let named: Vec<_> = new.iter().map(|(key, id)| (&spoke.namespaces()[usize::from(key.namespace())], **id)).collect();
    if !named.is_empty() {
        known.add(new.iter().map(|(key, _)| (*key).clone()));
        metadata::run(spoke, "registering foreign documents", &foreign::register(&named)).await?;
    }
    Ok(())
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
        assert!(known.is_empty() && known.forgets(&[step(1)], &namespaces).is_none());
        known.add([key(1)].into_iter());
        assert!(known.forgets(&[step(2)], &namespaces).is_none());
        let statement = known.forgets(&[step(2), step(1)], &namespaces).expect("one may be there");
        assert_eq!(statement.get_array("deletes").expect("valid").into_iter().count(), 1);
    }

    #[test]
    fn beyond_the_limit_any_document_may_be_registered() {
        let known = Known::default();
        known.add((0..=i32::try_from(REMEMBERED_DOCUMENTS).expect("few")).map(key));
        assert!(!known.is_empty() && known.may_hold(&key(-1)));
    }
}
