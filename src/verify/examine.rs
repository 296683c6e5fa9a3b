//! Examines single documents on both sides at one exact position of a link.
//!
//! A link commits its checkpoint together with the documents covered by the checkpoint. Reading a destination's
//! documents and the checkpoint at the same cluster time, and the source's documents at the cluster time of the
//! checkpoint, gives two sides that must be equal, whatever is in transit. The argument holds for a zone written at the
//! destination by the link alone. In a spoke's own zone both sides write. Documents are compared there from either
//! side, and equality from either side suffices.
//!
//! A look proves nothing about the time after its position, and counts only once the link has passed the moment at
//! which the document seemed to differ.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument};
use sha2::{Digest, Sha256};

use super::part::Part;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{self, Checkpoint};
use crate::mongo::read::{self, Snapshot, Wanted, When};
use crate::rules::difference;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::position::Position;

/// `_id`s of documents, by key.
pub(super) type Ids = HashMap<Key, RawBson>;

/// A differing document, with the version of each side.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) id: RawBson,
    pub(super) hub: Option<Version>,
    pub(super) spoke: Option<Version>,
    /// The differing fields of two versions.
    pub(super) paths: Vec<String>,
    /// True if seen at one exact position of the only link that writes the document.
    pub(super) is_exact: bool,
}

/// A version of a document, without its content: thousands of large documents may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    hash: [u8; 32],
    /// The spoke holds the document's zone.
    pub(super) is_held: bool,
    /// The document is of the spoke's own zone, or has no partition key.
    pub(super) is_own: bool,
    pub(super) has_zone: bool,
}

impl Seen {
    /// True if both sides still hold the versions seen before.
    pub(super) fn is_as(&self, before: &Self) -> bool {
        self.hub == before.hub && self.spoke == before.spoke
    }
}

/// A moment, in the cluster time of each side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) hub: Timestamp,
    pub(super) spoke: Timestamp,
}

impl Moment {
    pub(super) async fn now(part: &Part<'_>) -> Result<Self, Error> {
        Ok(Self { hub: part.hub.now().await?, spoke: part.spoke.now().await? })
    }
}

pub(super) struct Look {
    pub(super) differing: HashMap<Key, Seen>,
    /// Positions of the downlink and the uplink.
    pub(super) down: Position,
    pub(super) up: Position,
}

/// Examines documents that seemed to differ at some moment before `since`: as many at a time as fit into memory. Fails
/// if a server does not answer, or the spoke was never synced.
pub(super) async fn look(part: &Part<'_>, ids: &Ids, since: Moment) -> Result<Look, Error> {
    let all: Vec<(&Key, &RawBson)> = ids.iter().collect();
    let (mut waiting, mut most) = (all.as_slice(), all.len());
    let mut whole: Option<Look> = None;
    loop {
        let (now, later) = waiting.split_at(most.min(waiting.len()));
        match look_at(part, now, since).await {
            Err(Error::TooMuch { fitting, .. }) => {
                most = fitting;
                continue;
            }
            look => {
                let look = look?;
                // The first positions are the earliest ones.
                match &mut whole {
                    Some(whole) => whole.differing.extend(look.differing),
                    None => whole = Some(look),
                }
            }
        }
        // The next ones may be smaller.
        most = now.len().max(1) * 2;
        waiting = later;
        if let Some(whole) = whole.take_if(|_| waiting.is_empty()) {
            return Ok(whole);
        }
    }
}

async fn look_at(part: &Part<'_>, ids: &[(&Key, &RawBson)], since: Moment) -> Result<Look, Error> {
    let wanted: Wanted<'_> = ids.iter().map(|(key, id)| ((*key).clone(), id.as_raw_bson_ref())).collect();
    // From the spoke's side: the spoke now, and the hub at the position of the downlink's checkpoint.
    let spoke = read::fitting_documents(part.spoke, &wanted, When::NotBefore(part.spoke.now().await?)).await?;
    let down = checkpoints::at(part.spoke, &part.downlink(), spoke.at).await?;
    let (down, is_at_place) = part.place(down)?;
    let hub_then = read::fitting_documents_at(part.hub, &wanted, down.moment()).await?;
    // From the hub's side: the hub now, and the spoke at the position of the uplink's checkpoint.
    let hub = read::fitting_documents(part.hub, &wanted, When::NotBefore(part.hub.now().await?)).await?;
    let up = checkpoints::at(part.hub, &part.uplink(), hub.at).await?;
    let (up, _) = part.place(up)?;
    let spoke_then = read::fitting_documents_at(part.spoke, &wanted, up.moment()).await?;

    // Damage after the position of a look would pass as equal, so both the position and the read must reach `since`.
    // A server that has dropped the snapshot of the position reads a later version, and the look is not exact.
    let has_come_down = hub_then.at >= since.hub && down.moment() >= since.hub;
    let has_gone_up = spoke_then.at >= since.spoke && up.moment() >= since.spoke;
    let is_exact = has_come_down && is_at_place && hub_then.at == down.moment();
    // Equal now, or equal from the spoke's side, is equal. In the spoke's own zone the hub's side counts as well.
    let mut differing = HashMap::new();
    for (key, id) in ids {
        let (hub, spoke) = (of(&hub, key), of(&spoke, key));
        let (hub_then, spoke_then) = (of(&hub_then, key), of(&spoke_then, key));
        let is_own = [hub, spoke, hub_then, spoke_then].into_iter().any(|document| part.is_own(document));
        let is_equal = part.agree(hub, spoke)
            || (has_come_down && part.agree(hub_then, spoke))
            || (is_own && has_gone_up && part.agree(hub, spoke_then));
        if !is_equal {
            let paths = hub.zip(spoke).map(|(hub, spoke)| difference::paths(hub, spoke)).unwrap_or_default();
            let version = |document: Option<&RawDocument>| document.map(|document| part.version(document));
            let (hub, spoke) = (version(hub), version(spoke));
            let seen = Seen { id: (*id).clone(), hub, spoke, paths, is_exact: is_exact && !is_own };
            differing.insert((*key).clone(), seen);
        }
    }
    Ok(Look { differing, down, up })
}

fn of<'s>(snapshot: &'s Snapshot, key: &Key) -> Option<&'s RawDocument> {
    snapshot.documents.get(key).and_then(Option::as_deref)
}

impl Part<'_> {
    fn version(&self, document: &RawDocument) -> Version {
        Version {
            hash: Sha256::digest(document.as_bytes()).into(),
            is_held: self.holds(document),
            is_own: self.is_own(Some(document)),
            has_zone: lookup::value(document, self.hub.partition_key()).is_some(),
        }
    }

    /// Position of a link, and whether all documents are exactly at the position: nothing is ahead.
    fn place(&self, checkpoint: Option<Checkpoint>) -> Result<(Position, bool), Error> {
        let never = || self.spoke.unsuitable("the spoke was never synced: `spokesync run` must copy it first");
        let checkpoint = checkpoint.ok_or_else(never)?;
        let place = checkpoint.position.ok_or_else(never)?;
        let time = place.cluster_time();
        let is_ahead = self.held.iter().any(|zone| checkpoint.ahead.get(zone).is_some_and(|until| *until >= time));
        Ok((place, !is_ahead))
    }

    /// True if the spoke holds the hub's version, or nothing if the version's zone is not held.
    fn agree(&self, hub: Option<&RawDocument>, spoke: Option<&RawDocument>) -> bool {
        let expected = hub.filter(|document| self.holds(document));
        expected.map(RawDocument::as_bytes) == spoke.map(RawDocument::as_bytes)
    }
}
