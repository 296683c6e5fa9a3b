//! Partition keys for documents without a key: the spoke's documents get the key of the spoke's zone, at the spoke.

use std::collections::HashSet;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf};
use bson::{Timestamp, rawdoc};

use crate::mongo::error::Error;
use crate::mongo::metadata::sessions::{self, Slot, TaggedSession};
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::transaction;
use crate::rules::key::Key;
use crate::rules::ladder::RefusedStep;
use crate::rules::names::LinkName;

/// Stamps documents in transactions with the uplink's tag: the uplink recognises tagged changes as our own.
pub(super) struct Stamper {
    server: Server,
    link: LinkName,
    session: TaggedSession,
}

impl Stamper {
    pub(super) async fn new(server: &Server, link: &LinkName, slot: &Slot) -> Result<Self, Error> {
        let session = sessions::tagged_session(server, &link.to_string(), &link.zone, slot).await?;
        Ok(Self { server: server.clone(), link: link.clone(), session })
    }

    /// Gives the zone's partition key to all `unstamped` documents still without a key. Returns the spoke's cluster
    /// time of the commit, or [`Error::Refused`] if the spoke refuses a key, because of a validator or the document's
    /// size.
    pub(super) async fn stamp(&mut self, wanted: &Wanted<'_>, unstamped: &HashSet<Key>) -> Result<Timestamp, Error> {
        let (mut commands, mut keys) = (Vec::new(), Vec::new());
        for (number, namespace) in (0u16..).zip(self.server.namespaces()) {
            let here = unstamped.iter().filter(|key| key.namespace() == number);
            let (here, updates): (Vec<&Key>, Vec<RawDocumentBuf>) =
                here.filter_map(|key| Some((key, self.update(*wanted.get(key)?)))).unzip();
            if !here.is_empty() {
                let updates = RawArrayBuf::from_iter(updates);
                let command = rawdoc! { "update": namespace.collection.as_str(), "updates": updates };
                commands.push((namespace.database.as_str(), command));
                keys.push(here);
            }
        }
        // The step counts as no delta, because the whole document would need the same key.
        let whose = |command: usize, statement: usize| {
            let key: &Key = keys[command].get(statement)?;
            Some(RefusedStep { key: key.clone(), event: None, is_delta: false })
        };
        match transaction::run(&self.server, self.session.get(), &commands, whose).await {
            Err(Error::Refused { server, mut refusal }) => {
                refusal.message = format!("the spoke refuses it a partition key: {}", refusal.message);
                Err(Error::Refused { server, refusal })
            }
            stamped => stamped,
        }
    }

    fn update(&self, id: RawBsonRef<'_>) -> RawDocumentBuf {
        let key = self.server.partition_field();
        let mut missing = rawdoc! { "_id": { "$eq": id } };
        missing.append(key, rawdoc! { "$exists": false });
        let mut stamp = RawDocumentBuf::new();
        stamp.append(key, self.link.zone.as_str());
        rawdoc! { "q": missing, "u": { "$set": stamp } }
    }
}
