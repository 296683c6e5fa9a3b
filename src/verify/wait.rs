//! Waits until the saved checkpoints of both links of a spoke have passed a moment, and finds changes in transit while
//! no process carries the links.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use super::examine::{Ids, Look, Moment};
use super::part::Part;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints;
use crate::mongo::metadata::sessions::Tags;
use crate::mongo::server::Server;
use crate::mongo::tail::{Selection, Tail};
use crate::rules::key::Key;
use crate::rules::names::LinkName;
use crate::rules::position::Position;

/// Interval between two reads of a checkpoint.
const INTERVAL: Duration = Duration::from_millis(100);

/// Time without movement of a checkpoint after which the link counts as not carried. A quiet link's checkpoint moves
/// every 5 seconds.
const STANDS_STILL: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// Both links have passed the moment.
    Passed,
    /// At least one link is carried by no process.
    StandsStill,
    Stopped,
}

/// Waits until both links have passed a moment of their sources.
pub(super) async fn pass(part: &Part<'_>, moment: Moment, stop: &CancellationToken) -> Result<Waited, Error> {
    // A stream reports a position past a moment only after a later operation, so each server gets a write.
    part.hub.tick().await?;
    part.spoke.tick().await?;
    let downlink = wait(part.spoke, part.downlink(), moment.hub, stop);
    let uplink = wait(part.hub, part.uplink(), moment.spoke, stop);
    Ok(match futures_util::future::try_join(downlink, uplink).await? {
        (Waited::Stopped, _) | (_, Waited::Stopped) => Waited::Stopped,
        (Waited::StandsStill, _) | (_, Waited::StandsStill) => Waited::StandsStill,
        _ => Waited::Passed,
    })
}

async fn wait(
    destination: &Server,
    link: LinkName,
    until: Timestamp,
    stop: &CancellationToken,
) -> Result<Waited, Error> {
    let (mut last, mut moved): (Option<Position>, Instant) = (None, Instant::now());
    loop {
        let position = checkpoints::peek(destination, &link).await?.and_then(|checkpoint| checkpoint.position);
        if position.as_ref().is_some_and(|position| position.seen_until() >= until) {
            return Ok(Waited::Passed);
        }
        if position != last {
            (last, moved) = (position, Instant::now());
        } else if moved.elapsed() >= STANDS_STILL {
            return Ok(Waited::StandsStill);
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return Ok(Waited::Stopped);
        }
    }
}

/// Finds the documents with changes not carried by a link yet. Fails if a server does not answer, or the changes are no
/// longer in its oplog.
pub(super) async fn under_way(part: &Part<'_>, ids: &Ids, look: &Look) -> Result<HashSet<Key>, Error> {
    let mut found = changed(part.hub, &look.down, Selection::default(), ids).await?;
    let ours = Tags::load(part.spoke).await?.ours();
    found.extend(changed(part.spoke, &look.up, Selection { without: ours, ..Selection::default() }, ids).await?);
    Ok(found)
}

/// Finds the documents that applications have changed at the spoke after a position of the uplink.
pub(super) async fn changed_at_spoke(part: &Part<'_>, ids: &Ids, up: &Position) -> Result<HashSet<Key>, Error> {
    let ours = Tags::load(part.spoke).await?.ours();
    changed(part.spoke, up, Selection { without: ours, ..Selection::default() }, ids).await
}

async fn changed(source: &Server, from: &Position, selection: Selection, ids: &Ids) -> Result<HashSet<Key>, Error> {
    let until = source.tick().await?;
    let mut tail = Tail::open(source, Some(from), selection).await?;
    let mut found = HashSet::new();
    loop {
        let reply = tail.next().await?;
        for event in reply.events() {
            if let Ok(key) = event.key()
                && ids.contains_key(&key)
            {
                found.insert(key);
            }
        }
        if reply.end().seen_until() >= until {
            return Ok(found);
        }
    }
}
