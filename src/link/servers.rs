//! The two servers of a spoke, as a link finds them at its start: whether they are the replica sets of before, and
//! whether one of them was restored from a backup.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bson::Uuid;

use super::collections::unsynced;
use super::shared::Shared;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{self, Checkpoint};
use crate::mongo::metadata::identity;
use crate::mongo::server::Server;
use crate::mongo::tail;
use crate::rules::names::{Direction, LinkName, Zone};
use crate::rules::past::{self, Numbers, Restore};
use crate::rules::position::Position;

/// The replica sets of the process's spokes, by identity. Each belongs to one spoke.
#[derive(Debug, Default)]
pub(crate) struct ReplicaSets(Mutex<HashMap<Uuid, Zone>>);

impl ReplicaSets {
    /// Records the replica set of a zone's spoke. Fails with the other zone if the replica set is another spoke's.
    fn claim(&self, zone: &Zone, id: Uuid) -> Result<(), Zone> {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sets.get(&id) {
            Some(other) if other != zone => return Err(other.clone()),
            _ => {}
        }
        sets.retain(|_, other| other != zone);
        sets.insert(id, zone.clone());
        Ok(())
    }

    /// Forgets the replica set of a spoke that is no longer configured, or has another connection string now.
    pub(crate) fn release(&self, zone: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, other| other.as_str() != zone);
    }
}

/// What a link finds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// The identity of the source's replica set.
    pub(super) source_id: Uuid,
    /// The source is another replica set than before.
    pub(super) is_other: bool,
    /// The source of the opposite link is another replica set than before, and the opposite link has not begun anew.
    pub(super) is_other_for_opposite: bool,
    pub(super) restored: Option<Restore>,
}

/// Looks at both servers of a spoke, before a link claims its checkpoint.
///
/// # Errors
/// If a server does not answer, or if one replica set is configured twice.
pub(super) async fn look(spoke: &Shared, link: Direction, hub: &Server, edge: &Server) -> Result<Ends, Error> {
    let (hub_id, spoke_id) = (identity::of(hub).await?, identity::of(edge).await?);
    let same = |other: &str| edge.unsuitable(&is_one_with(other));
    if hub_id == spoke_id {
        return Err(same("the hub"));
    }
    if !edge.allows_sharing() {
        spoke.sets.claim(&spoke.zone, spoke_id).map_err(|other| same(&format!("spoke {other}")))?;
    }
    // Each number is read after the one that the other checkpoint remembers: another process may save meanwhile.
    let uplink = checkpoints::numbered(hub, &LinkName::uplink(&spoke.zone)).await?;
    let downlink = checkpoints::numbered(edge, &LinkName::downlink(&spoke.zone)).await?;
    let again = checkpoints::numbered(hub, &LinkName::uplink(&spoke.zone)).await?;
    let (mut at_hub, mut at_spoke) = (saved(uplink.as_ref(), edge).await?, saved(downlink.as_ref(), hub).await?);
    // The other link looks for its own change.
    match link {
        Direction::Uplink => at_hub.is_unknown |= lacks_change(uplink.as_ref(), edge).await?,
        Direction::Downlink => at_spoke.is_unknown |= lacks_change(downlink.as_ref(), hub).await?,
    }
    let at_hub = Numbers { number: again.map_or(0, |(number, _)| number), ..at_hub };
    let own = if link == Direction::Uplink { &uplink } else { &downlink };
    let restored = past::restored(at_hub, at_spoke, own.as_ref().map_or(0, |(_, own)| own.answered));
    let is_other = |saved: Option<(i64, Checkpoint)>, id| {
        saved.and_then(|(_, checkpoint)| checkpoint.source_id).is_some_and(|former| former != id)
    };
    let (at_spoke, at_hub) = (is_other(uplink, spoke_id), is_other(downlink, hub_id));
    Ok(match link {
        Direction::Uplink => Ends { source_id: spoke_id, is_other: at_spoke, is_other_for_opposite: at_hub, restored },
        Direction::Downlink => Ends { source_id: hub_id, is_other: at_hub, is_other_for_opposite: at_spoke, restored },
    })
}

/// The reason why a server cannot be a spoke, with the way out.
pub(crate) fn is_one_with(other: &str) -> String {
    format!(
        "its connection string leads to the replica set of {other}: correct the uri. If the server was set up from a \
         copy of the data of {other}, drop the metadata database at this server first"
    )
}

/// A new change stream starts a tick beyond the newest operation of its server, as 6.0.5 shows. A restored server is
/// behind by more than a second, or its checkpoint's number tells.
const MARGIN_SECONDS: u32 = 1;

/// True if the source has not reached the position.
pub(super) async fn is_beyond(position: &Position, source: &Server) -> Result<bool, Error> {
    let now = source.now().await?;
    Ok(position.cluster_time().time > now.time.saturating_add(MARGIN_SECONDS))
}

async fn saved(numbered: Option<&(i64, Checkpoint)>, source: &Server) -> Result<Numbers, Error> {
    let Some((number, checkpoint)) = numbered else { return Ok(Numbers::default()) };
    let is_unknown = match &checkpoint.position {
        Some(position) => is_beyond(position, source).await?,
        None => false,
    };
    Ok(Numbers { number: *number, opposite: checkpoint.opposite_seq, is_unknown })
}

/// True if the source's history lacks the newest change that the link has applied.
async fn lacks_change(numbered: Option<&(i64, Checkpoint)>, source: &Server) -> Result<bool, Error> {
    let Some((_, checkpoint)) = numbered else { return Ok(false) };
    // The change may be of a collection that is no longer synced.
    match checkpoint.change.filter(|_| unsynced(checkpoint, source.namespaces()).is_empty()) {
        Some(time) => Ok(!tail::has_change_at(source, time).await?),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_belongs_to_one_spoke_until_that_spoke_is_released_or_has_another() {
        let (sets, [one, two]) = (ReplicaSets::default(), [Uuid::new(), Uuid::new()]);
        let (dfw, hou) = (Zone::new("DFW"), Zone::new("HOU"));
        assert_eq!(sets.claim(&dfw, one), Ok(()));
        assert_eq!(sets.claim(&dfw, one), Ok(()), "after a restart of the link");
        assert_eq!(sets.claim(&hou, one), Err(dfw.clone()));
        assert_eq!(sets.claim(&dfw, two), Ok(()));
        assert_eq!(sets.claim(&hou, one), Ok(()));
        sets.release("HOU");
        assert_eq!(sets.claim(&dfw, one), Ok(()));
    }
}
