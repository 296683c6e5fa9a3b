//! Converts deliveries of the fan-out into work for a spoke.

use std::collections::HashMap;
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use crate::link::apply::mark::Mark;
use crate::link::apply::work::{Origin, Unreadable, Work};
use crate::link::hub::inbox::Delivery;
use crate::link::hub::routed::Routed;
use crate::mongo::read::Wanted;
use crate::rules::ahead::Ahead;
use crate::rules::conflicts::Conflicts;
use crate::rules::downlink::{Downlink, Incoming};
use crate::rules::fields::Fields;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::reply::{EventRef, Malformed};
use crate::rules::route::{Action, Content, Reach, SpokeId};
use crate::rules::step::{Step, Zones};

/// The weight of a delivery: the events for the spoke, and the bytes of the whole reply.
pub(super) fn weigh(delivery: &Delivery) -> Weight {
    let weight = delivery
        .routed
        .as_ref()
        .map(|(routed, spoke)| Weight { events: routed.picks(*spoke).len(), bytes: routed.reply.bytes() });
    weight.unwrap_or_default()
}

/// The settings for reading the hub's events.
#[derive(Clone, Copy)]
pub(super) struct Reading<'r> {
    pub(super) partition_key: &'r str,
    /// The hub's change events disambiguate paths with dots.
    pub(super) precise: bool,
}

/// What is known of the spoke's document of an `_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtSpoke {
    Nothing,
    /// The hub never accepted the document: the hub's document of the same `_id` is another one.
    Another,
    /// An application wrote the document in a zone of another spoke. A whole document of that zone, or its delete,
    /// replaces it, with a copy set aside; any other event may be about another document.
    Foreign,
}

/// Deliveries applied together. Event numbers continue from delivery to delivery.
pub(super) struct Changes {
    pub(super) events: Vec<Picked>,
    start: Position,
    end: Position,
}

/// An event for the spoke, with the spoke's action.
pub(super) struct Picked {
    routed: Arc<Routed>,
    spoke: SpokeId,
    event: usize,
    action: Action,
}

impl Picked {
    pub(super) fn event(&self) -> EventRef<'_> {
        self.routed.reply.event(self.event)
    }
}

impl Changes {
    /// The part of these deliveries after `start`.
    pub(super) fn new(deliveries: Vec<Delivery>, start: &Position) -> Self {
        let end = deliveries.last().map_or(start, |delivery| &delivery.end).max(start).clone();
        let mut events = Vec::new();
        for Delivery { routed, end, .. } in deliveries {
            let Some((routed, spoke)) = routed.filter(|_| end > *start) else { continue };
            let picks = routed.picks(spoke);
            let seen_at = |place: &Position| {
                picks.partition_point(|(event, _)| place.has_seen(routed.reply.event(*event as usize).token()))
            };
            events.extend(picks[seen_at(start)..seen_at(&end)].iter().map(|&(event, action)| Picked {
                routed: routed.clone(),
                spoke,
                event: event as usize,
                action,
            }));
        }
        Self { events, start: start.clone(), end }
    }

    /// The documents of the events.
    pub(super) fn documents(&self) -> Wanted<'_> {
        let events = self.events.iter().map(Picked::event);
        events.filter_map(|event| Some((event.key().ok()?, event.id().ok()?))).collect()
    }

    /// The work for the spoke. `known` tells what is known of the spoke's document.
    pub(super) fn work<'a>(
        &'a self,
        reading: Reading<'a>,
        ahead: &Ahead,
        conflicts: &Conflicts,
        known: impl Fn(&Key) -> AtSpoke,
    ) -> Result<Work<'a>, Malformed> {
        let (mut steps, mut to_settle, mut inferred) = (Vec::new(), Vec::new(), HashMap::new());
        let mut unreadable = Vec::new();
        let mut read_at: HashMap<Key, Timestamp> = HashMap::new();
        // Hub edits by earlier events of the deliveries, not recorded yet.
        let mut pending: HashMap<Key, Fields> = HashMap::new();
        for (number, picked) in self.events.iter().enumerate() {
            let downlink = Downlink {
                routes: &picked.routed.routes,
                spoke: picked.spoke,
                partition_key: reading.partition_key,
                precise: reading.precise,
            };
            // Most own changes meet no hub edit on the way back, and need no step.
            let event = picked.event();
            let is_quiet = conflicts.is_empty() && pending.is_empty();
            if matches!(picked.action, Action::Own) && is_quiet && !downlink.hands_over(event) {
                continue;
            }
            // What the spoke never got need not go.
            if !event.is_readable() {
                if matches!(picked.action, Action::Apply(..)) {
                    unreadable.extend(Unreadable::of(number, event));
                }
                continue;
            }
            // A document read whole with the reply already contains the later events of the reply. But a document that
            // leaves the spoke by the spoke's own move may be where the read does not look.
            let key = event.key()?;
            let at = event.cluster_time();
            if read_at.get(&key).is_some_and(|read| at <= *read) && picked.action != Action::Leave {
                continue;
            }
            // The event may be about another document of the same `_id` than the spoke's.
            let is_certain = match picked.action {
                Action::Apply(Content::Updated, _) => false,
                Action::Apply(_, reach) | Action::Delete(reach) => matches!(reach, Reach::Zone(_)),
                Action::Own | Action::Leave => false,
            };
            match known(&key) {
                _ if matches!(picked.action, Action::Own) => {}
                AtSpoke::Another => {
                    to_settle.push((key, RawBson::from(event.id()?)));
                    continue;
                }
                AtSpoke::Foreign if !is_certain => {
                    to_settle.push((key, RawBson::from(event.id()?)));
                    continue;
                }
                AtSpoke::Foreign => drop(inferred.insert(key.clone(), Inference::Decision)),
                AtSpoke::Nothing => {}
            }
            // The rules decide with the recorded and the pending hub edits.
            let standing = |zones: &Zones<'_>| ahead.standing(&key, zones.names(), at);
            let incoming = Incoming { action: picked.action, event, documents: &picked.routed.documents };
            let decision = downlink.decide(incoming, &key, standing, conflicts, pending.get(&key));
            let Some(decision) = decision else { continue };
            // A hub edit counts for later events of the same document, before the transaction records the edit.
            if let Some(fields) = &decision.hub_edit {
                let earlier = pending.remove(&key);
                let fields = earlier.map_or_else(|| fields.clone(), |earlier| earlier.union(fields.clone()));
                pending.insert(key.clone(), fields);
            }
            if matches!(picked.action, Action::Apply(Content::Read(_), _)) {
                read_at.insert(key.clone(), picked.routed.read_at);
            }
            let id = event.id()?;
            steps.push(Step {
                event: number,
                key,
                id,
                zones: decision.zones,
                write: decision.write,
                hub_edit: decision.hub_edit,
            });
        }
        Ok(Work {
            steps,
            end: Some(Mark::Streamed {
                end: self.end.clone(),
                change: self.events.last().and_then(|picked| picked.event().time_of_change()),
            }),
            last: self.events.last().map_or_else(|| self.start.seen_until(), |picked| picked.event().cluster_time()),
            read_at,
            changes: self.events.len(),
            to_settle,
            unreadable,
            inferred,
            ..Work::empty(self)
        })
    }
}

impl Origin for Changes {
    fn is_live(&self) -> bool {
        true
    }

    fn before(&self, event: usize) -> Option<Mark> {
        let previous = match event.checked_sub(1) {
            Some(previous) => self.events[previous].event().position()?,
            None => self.start.clone(),
        };
        Some(Mark::quiet(previous))
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let event = self.events[event].event();
        (event.raw(), Some(event.cluster_time()))
    }
}
