//! Documents that applications wrote at a spoke in zones that it does not own. They stay there, and must not be taken for
//! documents that the hub has deleted: they are registered at the spoke before the uplink goes past them, and taken out of the
//! register in the transaction that brings the hub's document of the same `_id`.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bson::raw::{RawBson, RawDocumentBuf};

use crate::link::REMEMBERED_DOCUMENTS;
use crate::mongo::error::Error;
use crate::mongo::metadata::foreign;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::Namespace;
use crate::rules::step::Step;

/// What may be in a spoke's register, so that a link need not ask for each document.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    some: HashSet<Key>,
    /// There are more than are remembered.
    any: bool,
}

impl Known {
    /// Reads the register.
    ///
    /// # Errors
    /// If the spoke does not answer.
    pub(super) async fn load(&self, spoke: &Server) -> Result<(), Error> {
        self.add(foreign::registered(spoke).await?.into_keys());
        Ok(())
    }

    fn add(&self, more: impl Iterator<Item = Key>) {
        let mut keys = self.keys();
        keys.some.extend(more);
        if keys.some.len() > REMEMBERED_DOCUMENTS {
            *keys = Keys { some: HashSet::new(), any: true };
        }
    }

    /// True if none of a spoke's documents can be in the register.
    pub(super) fn is_empty(&self) -> bool {
        let keys = self.keys();
        keys.some.is_empty() && !keys.any
    }

    /// True if this document may be in the register.
    pub(super) fn may_hold(&self, key: &Key) -> bool {
        let keys = self.keys();
        keys.any || keys.some.contains(key)
    }

    /// The statement that takes the documents of these steps out of the register, if one may be in it.
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

/// Registers those of these documents of a spoke that the hub does not have.
///
/// # Errors
/// If a server does not answer.
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
        foreign::run(spoke, &foreign::register(&named)).await?;
    }
    Ok(())
}
