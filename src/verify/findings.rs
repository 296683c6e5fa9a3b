//! What persists of what did not seem equal, and what it is called.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawBson, RawDocument};
use tokio_util::sync::CancellationToken;

use super::examine::{self, Ids, Moment, Seen};
use super::part::Part;
use super::report::{Finding, Kind, PartReport};
use super::wait::{self, Waited};
use super::{Run, repair};
use crate::mongo::error::Error;
use crate::mongo::metadata::{dead_letters, foreign};
use crate::mongo::repair::shown_id;
use crate::rules::difference;
use crate::rules::key::Key;
use crate::rules::names::Zone;

/// How often a document is looked at that changes all the time.
const ROUNDS: u32 = 12;

/// What persists of what did not seem equal.
#[derive(Default)]
pub(super) struct Persisting {
    pub(super) differing: HashMap<Key, Seen>,
    /// Changes of these are on their way, and nobody carries them.
    pub(super) under_way: usize,
    /// These change all the time at both sides.
    pub(super) unsettled: usize,
}

impl Part<'_> {
    /// Looks at documents once the links have passed the present moment, and longer at those that go on changing.
    pub(super) async fn persisting(&self, mut ids: Ids, stop: &CancellationToken) -> Result<Persisting, Error> {
        let mut persisting = Persisting::default();
        let mut before: HashMap<Key, Seen> = HashMap::new();
        for _ in 0..ROUNDS {
            if ids.is_empty() || stop.is_cancelled() {
                return Ok(persisting);
            }
            let moment = Moment::now(self).await?;
            let waited = wait::pass(self, moment, stop).await?;
            let look = examine::look(self, &ids, moment).await?;
            ids.retain(|key, _| look.differing.contains_key(key));
            if waited == Waited::StandsStill && !ids.is_empty() {
                let under_way: HashSet<Key> = wait::under_way(self, &ids, &look).await?;
                persisting.under_way = under_way.len();
                let rest = look.differing.into_iter().filter(|(key, _)| !under_way.contains(key));
                persisting.differing.extend(rest);
                return Ok(persisting);
            }
            // What both sides still have as they had it, though all that was on its way then has come.
            for (key, seen) in &look.differing {
                let persists =
                    before.get(key).is_some_and(|before| seen.is_as(before) || (seen.is_exact && before.is_exact));
                if persists {
                    ids.remove(key);
                    persisting.differing.insert(key.clone(), seen.clone());
                }
            }
            before = look.differing;
        }
        persisting.unsettled = ids.len();
        Ok(persisting)
    }

    /// Puts into words what persists, and mends it if that is wanted.
    pub(super) async fn tell(
        &self,
        persisting: Persisting,
        run: &Run<'_>,
        report: &mut PartReport,
    ) -> Result<(), Error> {
        if persisting.under_way > 0 {
            let number = persisting.under_way;
            let reason = format!(
                "changes of {number} documents are on their way, and nobody carries them: start `spokesync run`"
            );
            report.untold.push(self.untold(reason));
        }
        if persisting.unsettled > 0 {
            let number = persisting.unsettled;
            report.untold.push(self.untold(format!("{number} documents change all the time at both sides")));
        }
        let mut found = Vec::new();
        if !persisting.differing.is_empty() {
            let known = Known::load(self).await?;
            for (key, seen) in persisting.differing {
                // What the hub has in a zone that the spoke holds is told there.
                if self.zone.is_none() && seen.hub.as_deref().is_some_and(|document| self.holds(document)) {
                    continue;
                }
                let kind = self.kind(&key, &seen, &known);
                found.push((key, self.finding(&seen, kind), seen));
            }
        }
        if run.scope.repair && !found.is_empty() {
            repair::repair(self, &mut found, run).await?;
        }
        report.findings.extend(found.into_iter().map(|(_, finding, _)| finding));
        Ok(())
    }

    fn kind(&self, key: &Key, seen: &Seen, known: &Known) -> Kind {
        let has_zone = |document: &RawDocument| document.get(self.hub.partition_key()).is_ok_and(|zone| zone.is_some());
        let expected = seen.hub.as_deref().filter(|document| self.holds(document));
        match (expected, seen.spoke.as_deref()) {
            _ if known.parked.contains(key) => Kind::Parked,
            (_, None) => Kind::Missing,
            (_, Some(document)) if !has_zone(document) => Kind::Unstamped,
            (Some(_), Some(_)) => Kind::Different,
            (None, Some(document)) if !self.holds(document) || known.foreign.contains_key(key) => Kind::Foreign,
            (None, Some(_)) => Kind::Extra,
        }
    }

    fn finding(&self, seen: &Seen, kind: Kind) -> Finding {
        let paths = match (&seen.hub, &seen.spoke) {
            (Some(hub), Some(spoke)) => difference::paths(hub, spoke),
            _ => Vec::new(),
        };
        Finding {
            spoke: self.own.to_string(),
            ns: self.namespace_name(),
            zone: self.zone.map(Zone::to_string),
            id: shown_id(seen.id.as_raw_bson_ref()),
            kind,
            paths,
            repair: None,
            repaired: false,
        }
    }
}

/// Documents of which it is known why they differ.
struct Known {
    parked: HashSet<Key>,
    foreign: HashMap<Key, RawBson>,
}

impl Known {
    async fn load(part: &Part<'_>) -> Result<Self, Error> {
        let mut parked = dead_letters::parked(part.spoke, &part.downlink()).await?;
        parked.extend(dead_letters::parked(part.hub, &part.uplink()).await?);
        Ok(Self { parked, foreign: foreign::registered(part.spoke).await? })
    }
}
