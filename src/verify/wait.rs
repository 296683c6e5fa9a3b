//! Waits until the saved checkpoints of both links of a spoke have passed a moment, or until the links have nothing to
//! carry; finds changes in transit while no process carries the links.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bson::Timestamp;
use futures_util::future::{self, Either};
use tokio_util::sync::CancellationToken;

use super::examine::{Ids, Moment};
use super::part::Part;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{self, Reconciling};
use crate::mongo::metadata::sessions::Tags;
use crate::mongo::metadata::unsettled;
use crate::mongo::server::Server;
use crate::mongo::tail::{Selection, Tail};
use crate::rules::key::Key;
use crate::rules::names::{Direction, LinkName};
use crate::rules::position::Position;

/// Interval between two reads of a checkpoint.
const INTERVAL: Duration = Duration::from_millis(100);

/// Time without movement of a checkpoint after which the link counts as not carried. A quiet link's checkpoint moves
/// every 5 seconds.
const STANDS_STILL: Duration = Duration::from_secs(12);

/// Time within which the checkpoint of a busy link passes a moment.
const BUSY: Duration = Duration::from_millis(300);

/// Seconds of a source's changes that are read, at most, to learn whether a quiet link has something to carry.
const CLOSE: u32 = 10;

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
    Ok(match future::try_join(downlink, uplink).await? {
        (Waited::Stopped, _) | (_, Waited::Stopped) => Waited::Stopped,
        (Waited::StandsStill, _) | (_, Waited::StandsStill) => Waited::StandsStill,
        _ => Waited::Passed,
    })
}

/// Waits until both links have passed a moment of their sources, or have nothing of these documents to carry. A quiet
/// link saves its checkpoint only every 5 seconds; the change stream of its source tells sooner.
pub(super) async fn pass_for(
    part: &Part<'_>,
    ids: &Ids,
    moment: Moment,
    stop: &CancellationToken,
) -> Result<Waited, Error> {
    let mut passing = std::pin::pin!(pass(part, moment, stop));
    if let Ok(waited) = tokio::time::timeout(BUSY, &mut passing).await {
        return waited;
    }
    let looking = std::pin::pin!(nothing_waits(part, ids, moment));
    match future::select(&mut passing, looking).await {
        Either::Left((waited, _)) => waited,
        Either::Right((Ok(true), _)) => Ok(Waited::Passed),
        Either::Right((Ok(false), _)) => passing.await,
        Either::Right((Err(error), _)) => Err(error),
    }
}

/// True if neither link has a change of these documents to carry that was there at the moment, or a decision about one
/// of them to take. False as well if a link copies or compares, or lags: the look would read too much.
async fn nothing_waits(part: &Part<'_>, ids: &Ids, moment: Moment) -> Result<bool, Error> {
    let up = quiet_position(part, Direction::Uplink, moment).await?;
    let down = quiet_position(part, Direction::Downlink, moment).await?;
    let (Some(up), Some(down)) = (up, down) else { return Ok(false) };
    let wanted = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
    Ok(under_way(part, ids, &up, &down).await?.is_empty()
        && unsettled::among(part.hub, &part.uplink(), &wanted).await?.is_empty()
        && unsettled::among(part.spoke, &part.downlink(), &wanted).await?.is_empty())
}

/// The position of a link that streams and is close behind the moment.
async fn quiet_position(part: &Part<'_>, link: Direction, moment: Moment) -> Result<Option<Position>, Error> {
    let (checkpoint, moment) = match link {
        Direction::Uplink => (checkpoints::peek(part.hub, &part.uplink()).await?, moment.spoke),
        Direction::Downlink => (checkpoints::peek(part.spoke, &part.downlink()).await?, moment.hub),
    };
    let streams = checkpoint.filter(|checkpoint| {
        let zone = part.zone.filter(|zone| link == Direction::Downlink || *zone == part.own);
        let copied = zone.map(|zone| checkpoints::Part::new(part.hub.namespace(part.namespace), zone));
        checkpoint.reconciling == Reconciling::No
            && checkpoint.copying.is_none()
            && copied.is_none_or(|copied| checkpoint.copied.contains(&copied))
    });
    let position = streams.and_then(|checkpoint| checkpoint.position);
    Ok(position.filter(|position| position.cluster_time().time.saturating_add(CLOSE) >= moment.time))
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

/// Finds the documents with changes after the positions of the uplink and the downlink: no link has carried them yet.
/// Fails if a server does not answer, or the changes are no longer in its oplog.
pub(super) async fn under_way(
    part: &Part<'_>,
    ids: &Ids,
    up: &Position,
    down: &Position,
) -> Result<HashSet<Key>, Error> {
    let mut found = changed(part.hub, down, Selection::default(), ids).await?;
    found.extend(changed_at_spoke(part, ids, up).await?);
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
