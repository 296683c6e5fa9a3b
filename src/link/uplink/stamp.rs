//! Gives documents that an application wrote without a partition key the key of its spoke, at the spoke.

use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bson::{Timestamp, rawdoc};
use std::collections::HashSet;

use crate::mongo::error::Error;
use crate::mongo::metadata::sessions::{self as tags, Slot, TaggedSession};
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::transaction;
use crate::rules::key::Key;
use crate::rules::ladder::Refusal;
use crate::rules::names::Link;

/// A document that the spoke does not let have a partition key.
#[derive(Debug)]
pub(crate) struct Unstampable {
    /// Which one, if the spoke tells.
    pub(crate) key: Option<Key>,
    /// Why.
    pub(crate) refusal: Refusal,
    /// Why, for people.
    pub(crate) message: String,
}

/// Stamps documents in transactions that carry the uplink's tag, so that they are recognised as our own.
pub(crate) struct Stamper {
    server: Server,
    link: Link,
    session: TaggedSession,
}

impl Stamper {
    /// A stamper for the spoke of this uplink.
    ///
    /// # Errors
    /// If the spoke does not answer.
    pub(crate) async fn new(server: &Server, link: &Link, slot: &Slot) -> Result<Self, Error> {
        let session = tags::tagged_session(server, &link.to_string(), &link.zone, slot).await?;
        Ok(Self { server: server.clone(), link: link.clone(), session })
    }

    /// Gives these documents the zone's partition key where they still have none. Tells the spoke's time of it, or which of them
    /// cannot have one: a validator forbids it, or it would be too large.
    ///
    /// # Errors
    /// If the spoke does not answer.
    pub(crate) async fn stamp(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
    ) -> Result<Result<Timestamp, Unstampable>, Error> {
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
        let stamped = transaction::run(&self.server, self.session.get(), &commands).await?;
        Ok(stamped.map_err(|(command, refused)| Unstampable {
            key: refused.number.and_then(|number| keys[command].get(number)).copied().cloned(),
            refusal: refused.refusal,
            message: format!("the spoke refuses it a partition key: {}", refused.message),
        }))
    }

    fn update(&self, id: bson::raw::RawBsonRef<'_>) -> RawDocumentBuf {
        let key = self.server.partition_field();
        let mut missing = rawdoc! { "_id": { "$eq": id } };
        missing.append(key, rawdoc! { "$exists": false });
        let mut stamp = RawDocumentBuf::new();
        stamp.append(key, self.link.zone.as_str());
        rawdoc! { "q": missing, "u": { "$set": stamp } }
    }
}
