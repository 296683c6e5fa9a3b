//! The first copy of the held zones, the comparison after a lost position, and the end of zones no longer watched.

use std::collections::{HashMap, HashSet};

use tokio_util::sync::CancellationToken;

use super::HubSource;
use crate::config::OnUnwatch;
use crate::link::apply::mark::Mark;
use crate::link::copy::{Ended, Job};
use crate::link::foreign;
use crate::link::lifecycle::{Link, Stopped};
use crate::link::reached::Waited;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{CopiedUpTo, Part, Reconciling};
use crate::mongo::scan::{self, Area, Range, Which};
use crate::observe::status::State;
use crate::rules::copy::{Policy, Remembered};
use crate::rules::key::Key;
use crate::rules::names::{Direction, Zone};

impl Link<'_, HubSource> {
    /// Copies every held zone not copied yet: first the watched zones, then the own zone's documents that only the hub
    /// has. With `only_new`, parts copied before wait for a comparison.
    pub(super) async fn copy_held_zones(&mut self, only_new: bool, stop: &CancellationToken) -> Result<Ended, Error> {
        let (hub, routes, spoke) = (self.source.server.clone(), self.source.rules.routes.clone(), self.spoke);
        let Some(number) = routes.owner(spoke.zone.as_str()) else { return Ok(Ended::Done) };
        let held: Vec<Zone> = routes.held(number).cloned().collect();
        let watched = held.iter().filter(|zone| **zone != spoke.zone);
        let reconciling = if only_new { Reconciling::No } else { self.checkpoint().reconciling };
        let is_again = reconciling != Reconciling::No;
        // Zones no longer watched go first, so that their documents count in no comparison.
        if self.leave_zones(stop).await?.is_some() {
            return Ok(Ended::Stopped);
        }
        // A registered document known to the hub is no longer foreign: a later delete at the hub must reach the spoke.
        if is_again {
            foreign::forget_known(&self.spoke.pair.foreign, &hub, &self.destination_server()).await?;
        }
        // What the hub does not have at all need not be looked for there once the owner's documents have come.
        let mut empty_at_hub = HashSet::new();
        if !is_again {
            let first = |zone: &'_ Zone| Policy::down(*zone == spoke.zone, false);
            let zones: Vec<_> = held.iter().map(|zone| (zone, first(zone))).collect();
            empty_at_hub = self.finish_empty(&zones, stop).await?;
        }
        // One part at a time, so that an interrupted copy resumes at the part.
        for zone in watched.chain([&spoke.zone]) {
            for (namespace_number, namespace) in (0u16..).zip(hub.namespaces()) {
                let part = Part::new(namespace, zone);
                let checkpoint = self.checkpoint();
                let copied = checkpoint.copied.contains(&part);
                let remembered = Remembered { copied, left: checkpoint.left.contains(&part) };
                if !remembered.is_due(only_new) {
                    continue;
                }
                // A new watched zone takes nothing from the spoke's own zone: the link stays complete.
                let own = Part::new(namespace, &spoke.zone);
                let has_own = checkpoint.copied.contains(&own);
                let is_lost = is_again && !reconciling.keeps_position();
                if is_lost || (reconciling == Reconciling::No && !has_own) {
                    self.set_incomplete();
                }
                self.cell().set_state(if is_again { State::Reconciling } else { State::InitialSync });
                let policy = Policy::down(*zone == spoke.zone, remembered.left);
                // The owner's documents go up first: otherwise the hub's older versions would replace the owner's
                // documents.
                if policy == Policy::HubReconciles && !reconciling.keeps_position() {
                    // The wait may be long, and the fan-out must not wait for an abandoned inbox.
                    if self.source.inbox.take().is_some() {
                        spoke.fanout.detach(&spoke.zone);
                    }
                    let complete = spoke.pair.carried(Direction::Uplink).complete(stop);
                    if spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
                        return Ok(Ended::Stopped);
                    }
                }
                if policy == Policy::HubReconciles && !remembered.left && empty_at_hub.contains(&namespace_number) {
                    self.save(Some(Mark::Empty(vec![part]))).await?;
                    self.learn_collections(&HashSet::from([namespace_number])).await?;
                    continue;
                }
                let job = Job {
                    namespace: namespace_number,
                    zone: zone.clone(),
                    within: within(&held, zone, &spoke.zone),
                    policy,
                    can_wait: reconciling.keeps_position(),
                    source: hub.clone(),
                    destination: self.destination_server(),
                };
                let ended = self.copy_part(&job, stop).await?;
                if ended != Ended::Done {
                    return Ok(ended);
                }
            }
        }
        if is_again {
            self.save(Some(Mark::Reconciled)).await?;
            self.cell().set_comparing(false);
        }
        Ok(Ended::Done)
    }

    /// Leaves the zones no longer watched. Their documents stay or go, by configuration.
    async fn leave_zones(&mut self, stop: &CancellationToken) -> Result<Option<Stopped>, Error> {
        let routes = self.source.rules.routes.clone();
        let Some(number) = routes.owner(self.spoke.zone.as_str()) else { return Ok(None) };
        let is_held = |part: &Part| routes.held(number).any(|zone| *zone == part.zone);
        // A part whose copy was interrupted has documents at the spoke as well. Those that the copy has not reached are
        // the spoke's own, and are registered like those that it has reached.
        let interrupted = self.checkpoint().copying.clone().filter(|up_to| !is_held(&up_to.part));
        if let Some(up_to) = interrupted {
            self.register_rest(&up_to).await?;
        }
        let checkpoint = self.checkpoint();
        let copying = checkpoint.copying.iter().map(|up_to| &up_to.part);
        let mut parts: Vec<Part> = checkpoint.copied.iter().chain(copying).cloned().collect();
        parts.retain(|part| !is_held(part));
        match self.spoke.on_unwatch {
            OnUnwatch::Keep if parts.is_empty() => {}
            OnUnwatch::Keep => {
                self.save(Some(Mark::Left { kept: parts, purged: Vec::new() })).await?;
            }
            OnUnwatch::Purge => {
                // Left first: after an interrupted purge, the checkpoint must not count the zone as complete.
                if !parts.is_empty() {
                    self.save(Some(Mark::Left { kept: parts.clone(), purged: Vec::new() })).await?;
                }
                // Also parts left before: by another policy, or in the middle of a reconcile.
                let left = self.checkpoint().left.iter().filter(|part| !is_held(part) && !parts.contains(part));
                let left: Vec<Part> = left.cloned().collect();
                // A purge waits for the uplink, and the uplink's first copy waits until the downlink has a position.
                if !parts.is_empty() || !left.is_empty() {
                    self.spoke.pair.carried(Direction::Downlink).begin();
                }
                for part in parts.into_iter().chain(left) {
                    if let Some(stopped) = self.purge(&part, stop).await? {
                        return Ok(Some(stopped));
                    }
                }
            }
        }
        Ok(None)
    }
}

impl Link<'_, HubSource> {
    /// Registers the spoke's documents after the place of an interrupted first copy as foreign, except for those that
    /// the hub has as well.
    async fn register_rest(&mut self, up_to: &CopiedUpTo) -> Result<(), Error> {
        if self.checkpoint().left.contains(&up_to.part) {
            return Ok(());
        }
        let (hub, spoke) = (self.source.server.clone(), self.destination_server());
        let number = spoke.namespaces().iter().position(|namespace| namespace.to_string() == up_to.part.namespace);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { return Ok(()) };
        let mut after = up_to.after.clone();
        loop {
            let range = Range::from(Some(after.as_raw_bson_ref()), spoke.now().await?);
            let page = scan::page(&spoke, Area::of(number, Which::Of(&up_to.part.zone)), range).await?;
            let Some(last) = page.documents().next_back() else { return Ok(()) };
            after = scan::id_of(&spoke, last)?;
            let mut found = HashMap::new();
            for document in page.documents() {
                let key = Key::new(number, scan::id_of(&spoke, document)?.as_raw_bson_ref());
                found.insert(key, document.to_owned());
            }
            foreign::register(&self.spoke.pair.foreign, &spoke, &hub, &found).await?;
        }
    }
}

/// The zones in which the spoke may have a document that the hub has in this zone. A document in the spoke's own zone
/// may be another one of the same `_id`: only the decision about the document may replace it.
fn within(held: &[Zone], zone: &Zone, own: &Zone) -> Vec<Zone> {
    held.iter().filter(|held| *held != own || zone == own).cloned().collect()
}
