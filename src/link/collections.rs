//! The identity of a link's collections. A collection name can pass to another collection, by a drop and a new
//! creation, or by a rename. No change event then describes the lost and the new documents.
//!
//! A link never carries a drop or a rename over. The link copies the collection again like a first copy, without
//! deletions: the owner's documents win, and documents of the hub alone come down. Documents dropped at one side
//! therefore come back from the other side.

use std::collections::HashSet;

use super::apply::mark::Mark;
use super::lifecycle::Link;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{Checkpoint, Identity};
use crate::mongo::server::Server;
use crate::rules::names::Namespace;

impl<S: Source> Link<'_, S> {
    /// Checks the identity of the collections at both ends, and forgets the copied parts of replaced collections.
    pub(super) async fn look_at_collections(&mut self) -> Result<(), Error> {
        let pair = &self.spoke.pair;
        let (source, here, checkpoint) =
            (self.source.server().clone(), self.destination_server(), self.checkpoint().clone());
        let lost = pair.lost_collections(S::DIRECTION);
        let mut replaced: Vec<String> = lost
            .iter()
            .filter_map(|number| source.namespaces().get(usize::from(*number)))
            .map(ToString::to_string)
            .collect();
        replaced.extend(others(&source, &checkpoint.collections).await?);
        replaced.extend(others(&here, &checkpoint.destination_collections).await?);
        // The configuration is part of the state: with another partition key every document may be in another zone, and
        // the stream has no changes of a collection from the time in which it was not synced.
        let is_other_key = checkpoint.partition_key.as_deref().is_some_and(|key| key != source.partition_key());
        if is_other_key {
            replaced.extend(source.namespaces().iter().map(ToString::to_string));
        }
        let unsynced = unsynced(&checkpoint, source.namespaces());
        if !unsynced.is_empty() {
            tracing::warn!(
                ns = unsynced.join(", "),
                "no longer synced: should it be synced again, it is copied again, deleting nothing"
            );
        }
        if replaced.is_empty() {
            if !unsynced.is_empty() {
                self.save(Some(Mark::Replaced(unsynced))).await?;
            }
            pair.has_looked(S::DIRECTION, &lost);
            return Ok(());
        }
        replaced.sort();
        replaced.dedup();
        let what = if is_other_key { "partition key" } else { "collection" };
        tracing::warn!(
            ns = replaced.join(", "),
            "the {what} is another one than before: copying again, deleting nothing"
        );
        // The opposite link must know first: otherwise missing documents would count as deleted.
        pair.must_look(S::DIRECTION.opposite());
        self.save(Some(Mark::Replaced(replaced.into_iter().chain(unsynced).collect()))).await?;
        pair.has_looked(S::DIRECTION, &lost);
        Ok(())
    }

    /// Saves the identities of collections new to the link, after changes of documents in these collections.
    pub(super) async fn learn_collections(&mut self, touched: &HashSet<u16>) -> Result<(), Error> {
        let (source, here) = (self.source.server().clone(), self.destination_server());
        let checkpoint = self.checkpoint();
        let is_known = |namespace: &u16| {
            // The end of a stream, and the drop of a database, are events of no collection.
            let Some(name) = source.namespaces().get(usize::from(*namespace)) else { return true };
            let name = name.to_string();
            let is_in = |known: &[Identity]| known.iter().any(|known| known.namespace == name);
            is_in(&checkpoint.collections) && is_in(&checkpoint.destination_collections)
        };
        if touched.iter().all(is_known) {
            return Ok(());
        }
        let (at_source, at_destination) = (checkpoint.collections.clone(), checkpoint.destination_collections.clone());
        let new_at_source = learnt(&source, &at_source).await?;
        let new_at_destination = learnt(&here, &at_destination).await?;
        if new_at_source.is_some() || new_at_destination.is_some() {
            let at_source = new_at_source.unwrap_or(at_source);
            let at_destination = new_at_destination.unwrap_or(at_destination);
            self.destination.set_collections(at_source, at_destination);
            self.save(None).await?;
        }
        Ok(())
    }

    /// True if the source's collection is known, and still the same.
    pub(super) async fn is_the_same_collection(&mut self, namespace: u16) -> Result<bool, Error> {
        let source = self.source.server().clone();
        let name = source.namespaces()[usize::from(namespace)].to_string();
        let known = self.checkpoint().collections.iter().find(|known| known.namespace == name).cloned();
        let Some(known) = known else { return Ok(false) };
        Ok(others(&source, std::slice::from_ref(&known)).await?.is_empty())
    }
}

/// The namespaces that the checkpoint knows and the configuration does not.
pub(super) fn unsynced(checkpoint: &Checkpoint, synced: &[Namespace]) -> Vec<String> {
    let parts = checkpoint.copied.iter().chain(&checkpoint.left).chain(checkpoint.copying.iter().map(|it| &it.part));
    let identities = checkpoint.collections.iter().chain(&checkpoint.destination_collections);
    let known = parts.map(|part| &part.namespace).chain(identities.map(|known| &known.namespace));
    let synced: Vec<String> = synced.iter().map(ToString::to_string).collect();
    let mut unsynced: Vec<String> = known.filter(|namespace| !synced.contains(namespace)).cloned().collect();
    unsynced.sort();
    unsynced.dedup();
    unsynced
}

/// The known namespaces with a different collection now.
async fn others(server: &Server, known: &[Identity]) -> Result<Vec<String>, Error> {
    let Some(present) = server.collections().await? else { return Ok(Vec::new()) };
    let is_other = |(namespace, uuid): (&Namespace, Option<[u8; 16]>)| {
        let name = namespace.to_string();
        let known = known.iter().find(|known| known.namespace == name)?;
        (Some(known.uuid) != uuid).then_some(name)
    };
    Ok(server.namespaces().iter().zip(present).filter_map(is_other).collect())
}

/// The numbers of the known collections that are others now, or are no more.
pub(super) async fn replaced(server: &Server, known: &[Identity]) -> Result<HashSet<u16>, Error> {
    let others = others(server, known).await?;
    let numbered = (0u16..).zip(server.namespaces());
    let replaced = numbered.filter(|(_, namespace)| others.contains(&namespace.to_string()));
    Ok(replaced.map(|(number, _)| number).collect())
}

/// The known and the new identities; `None` if no identity is new.
async fn learnt(server: &Server, known: &[Identity]) -> Result<Option<Vec<Identity>>, Error> {
    let is_unknown = |name: &String| known.iter().all(|known| known.namespace != *name);
    if !server.namespaces().iter().any(|namespace| is_unknown(&namespace.to_string())) {
        return Ok(None);
    }
    let Some(present) = server.collections().await? else { return Ok(None) };
    let named = server.namespaces().iter().map(ToString::to_string).zip(present);
    let new = named.filter(|(name, _)| is_unknown(name));
    let new: Vec<Identity> = new.filter_map(|(namespace, uuid)| Some(Identity { namespace, uuid: uuid? })).collect();
    Ok((!new.is_empty()).then(|| known.iter().cloned().chain(new).collect()))
}
