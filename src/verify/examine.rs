//! Looks at single documents of both sides, as they were at one exact place of a link.
//!
//! A link's checkpoint is saved with the documents that it covers. So whoever reads a destination's documents and its checkpoint at one
//! cluster time, and the source's documents at the checkpoint's, sees two sides that must be equal, whatever is on its way. That
//! holds for a zone which only the link writes at the destination. In a spoke's own zone both sides write; there it is looked from
//! either side, and who is equal from one of them is equal.
//!
//! Such a look says nothing of what happened after that place. So it counts only once the link has passed the moment at which a document
//! was seen to differ.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument, RawDocumentBuf};

use super::part::Part;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{self, Checkpoint};
use crate::mongo::read::{self, Snapshot, Wanted, When};
use crate::rules::key::Key;
use crate::rules::position::Position;

/// Documents by their `_id`.
pub(super) type Ids = HashMap<Key, RawBson>;

/// A document that is not equal, as both sides had it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) id: RawBson,
    pub(super) hub: Option<RawDocumentBuf>,
    pub(super) spoke: Option<RawDocumentBuf>,
    /// It was seen at one exact place of the only link that writes it.
    pub(super) is_exact: bool,
}

impl Seen {
    /// True if both sides had it like this before.
    pub(super) fn is_as(&self, before: &Self) -> bool {
        let bytes = |document: &Option<RawDocumentBuf>| document.as_ref().map(|document| document.as_bytes().to_vec());
        bytes(&self.hub) == bytes(&before.hub) && bytes(&self.spoke) == bytes(&before.spoke)
    }
}

/// A moment of both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) hub: Timestamp,
    pub(super) spoke: Timestamp,
}

impl Moment {
    /// Now.
    pub(super) async fn now(part: &Part<'_>) -> Result<Self, Error> {
        Ok(Self { hub: part.hub.now().await?, spoke: part.spoke.now().await? })
    }
}

/// What was seen at one look.
pub(super) struct Look {
    /// What was not equal.
    pub(super) differing: HashMap<Key, Seen>,
    /// Where the links stood.
    pub(super) down: Position,
    pub(super) up: Position,
}

/// Looks at these documents, which seemed to differ at some moment before `since`.
///
/// # Errors
/// If a server does not answer, or the spoke was never synced.
pub(super) async fn look(part: &Part<'_>, ids: &Ids, since: Moment) -> Result<Look, Error> {
    let wanted: Wanted<'_> = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
    // The spoke as it is now, and the hub as it was where the downlink stands; then the other way round.
    let spoke = read::documents(part.spoke, &wanted, None, When::NotBefore(part.spoke.now().await?)).await?;
    let down = checkpoints::at(part.spoke, &part.downlink(), spoke.at).await?;
    let (down, is_at_place) = part.place(down)?;
    let hub_then = read::documents_at(part.hub, &wanted, down.moment()).await?;
    let hub = read::documents(part.hub, &wanted, None, When::NotBefore(part.hub.now().await?)).await?;
    let up = checkpoints::at(part.hub, &part.uplink(), hub.at).await?;
    let (up, _) = part.place(up)?;
    let spoke_then = read::documents_at(part.spoke, &wanted, up.moment()).await?;

    let has_come_down = hub_then.at >= since.hub && down.moment() >= since.hub;
    let has_gone_up = spoke_then.at >= since.spoke && up.moment() >= since.spoke;
    let is_exact = has_come_down && is_at_place && hub_then.at == down.moment();
    let mut differing = HashMap::new();
    for (key, id) in ids {
        let (hub, spoke) = (of(&hub, key), of(&spoke, key));
        let (hub_then, spoke_then) = (of(&hub_then, key), of(&spoke_then, key));
        let is_own = [hub, spoke, hub_then, spoke_then].into_iter().any(|document| part.is_own(document));
        let is_equal = part.agree(hub, spoke)
            || (has_come_down && part.agree(hub_then, spoke))
            || (is_own && has_gone_up && part.agree(hub, spoke_then));
        if !is_equal {
            let kept = |document: Option<&RawDocument>| document.map(RawDocument::to_owned);
            let seen = Seen { id: id.clone(), hub: kept(hub), spoke: kept(spoke), is_exact: is_exact && !is_own };
            differing.insert(key.clone(), seen);
        }
    }
    Ok(Look { differing, down, up })
}

fn of<'s>(snapshot: &'s Snapshot, key: &Key) -> Option<&'s RawDocument> {
    snapshot.documents.get(key).and_then(Option::as_deref)
}

impl Part<'_> {
    /// Where a link stands, and whether all documents are exactly as they were there.
    fn place(&self, checkpoint: Option<Checkpoint>) -> Result<(Position, bool), Error> {
        let never = || self.spoke.unsuitable("it was never synced: `spokesync run` must have copied it first");
        let checkpoint = checkpoint.ok_or_else(never)?;
        let place = checkpoint.position.ok_or_else(never)?;
        let time = place.cluster_time();
        let is_ahead = self.held.iter().any(|zone| checkpoint.ahead.get(zone).is_some_and(|until| *until >= time));
        Ok((place, !is_ahead))
    }

    /// True if the spoke has what it should have of a document that the hub has like this.
    fn agree(&self, hub: Option<&RawDocument>, spoke: Option<&RawDocument>) -> bool {
        let expected = hub.filter(|document| self.holds(document));
        expected.map(RawDocument::as_bytes) == spoke.map(RawDocument::as_bytes)
    }
}
