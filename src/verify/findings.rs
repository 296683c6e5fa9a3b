//! Persistent differences and their kinds.

use std::collections::{HashMap, HashSet};

use tokio_util::sync::CancellationToken;

use super::examine::{self, Ids, Moment, Seen};
use super::part::Part;
use super::report::{Finding, Kind, PartReport};
use super::wait::{self, Waited};
use super::{Run, repair};
use crate::mongo::error::Error;
use crate::mongo::metadata::{dead_letters, foreign};
use crate::rules::key::Key;
use crate::rules::names::Zone;
use crate::rules::shown_id;

/// Maximum number of looks at a document that keeps changing.
const ROUNDS: u32 = 12;

/// Documents still different after every necessary look.
#[derive(Default)]
pub(super) struct Persisting {
    pub(super) differing: HashMap<Key, Seen>,
    /// Number of documents with changes in transit while no process carries the links.
    pub(super) under_way: usize,
    /// Number of documents that kept changing on both sides.
    pub(super) unsettled: usize,
}

impl Part<'_> {
    /// Examines documents once the links have carried what there is of them at present, and again as long as documents
    /// keep changing.
    pub(super) async fn persisting(&self, mut ids: Ids, stop: &CancellationToken) -> Result<Persisting, Error> {
        let mut persisting = Persisting::default();
        let mut before: HashMap<Key, Seen> = HashMap::new();
        for _ in 0..ROUNDS {
            if ids.is_empty() || stop.is_cancelled() {
                return Ok(persisting);
            }
            // Everything in transit now must arrive before the look, or a late change would count as a difference.
            let moment = Moment::now(self).await?;
            let waited = wait::pass_for(self, &ids, moment, stop).await?;
            let look = examine::look(self, &ids, moment).await?;
            ids.retain(|key, _| look.differing.contains_key(key));
            // With a link at a standstill, a pending change may explain the difference. Further looks would show the
            // same.
            if waited == Waited::StandsStill && !ids.is_empty() {
                let under_way: HashSet<Key> = wait::under_way(self, &ids, &look.up, &look.down).await?;
                persisting.under_way = under_way.len();
                let rest = look.differing.into_iter().filter(|(key, _)| !under_way.contains(key));
                persisting.differing.extend(rest);
                return Ok(persisting);
            }
            // Persistent: unchanged since the look before, after everything then in transit has arrived; or exact
            // twice.
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

    /// Turns persistent differences into findings, and repairs the documents if requested.
    pub(super) async fn tell(
        &self,
        persisting: Persisting,
        run: &Run<'_>,
        report: &mut PartReport,
    ) -> Result<(), Error> {
        // Documents in transit or in constant change are neither equal nor different.
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
            let known = Known::load(self, &persisting.differing).await?;
            for (key, seen) in persisting.differing {
                // A document in a zone held by the spoke is reported by the part of the zone.
                if self.zone.is_none() && seen.hub.as_ref().is_some_and(|version| version.is_held) {
                    continue;
                }
                let kind = Self::kind(&key, &seen, &known);
                found.push((key, self.finding(&seen, kind), seen));
            }
        }
        // A repair records the outcome in the findings, so reporting comes last.
        if run.scope.repair && !found.is_empty() {
            repair::repair(self, &mut found, run).await?;
        }
        report.findings.extend(found.into_iter().map(|(_, finding, _)| finding));
        Ok(())
    }

    fn kind(key: &Key, seen: &Seen, known: &Known) -> Kind {
        let expected = seen.hub.as_ref().filter(|version| version.is_held);
        match (expected, &seen.spoke) {
            _ if known.parked.contains(key) => Kind::Parked,
            (_, None) => Kind::Missing,
            (_, Some(version)) if !version.has_zone => Kind::Unstamped,
            (Some(_), Some(_)) => Kind::Different,
            (None, Some(version)) if !version.is_held || known.foreign.contains(key) => Kind::Foreign,
            (None, Some(_)) => Kind::Extra,
        }
    }

    fn finding(&self, seen: &Seen, kind: Kind) -> Finding {
        Finding {
            spoke: self.own.to_string(),
            ns: self.namespace_name(),
            zone: self.zone.map(Zone::to_string),
            id: shown_id::as_json(seen.id.as_raw_bson_ref()),
            kind,
            paths: seen.paths.clone(),
            repair: None,
            repaired: false,
        }
    }
}

/// Documents with a known reason to differ.
struct Known {
    parked: HashSet<Key>,
    foreign: HashSet<Key>,
}

impl Known {
    async fn load(part: &Part<'_>, differing: &HashMap<Key, Seen>) -> Result<Self, Error> {
        let wanted = differing.iter().map(|(key, seen)| (key.clone(), seen.id.as_raw_bson_ref())).collect();
        let mut parked = dead_letters::open_among(part.spoke, &part.downlink(), &wanted).await?;
        parked.extend(dead_letters::open_among(part.hub, &part.uplink(), &wanted).await?);
        Ok(Self { parked, foreign: foreign::among(part.spoke, &wanted).await? })
    }
}
