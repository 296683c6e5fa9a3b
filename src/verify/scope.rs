//! What is compared, and how.

use serde::Deserialize;

use crate::config::{Config, Spoke};
use crate::rules::names::Zone;

/// What a verification is asked to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Only this zone, at every spoke that holds it.
    pub(crate) zone: Option<Zone>,
    /// Only what this spoke holds.
    pub(crate) spoke: Option<Zone>,
    /// Mend what differs.
    pub(crate) repair: bool,
    /// Remove documents that applications wrote in zones that are not theirs.
    pub(crate) purge_foreign: bool,
    /// Compare digests, and look closer only where they differ.
    pub(crate) quick: bool,
    /// Forget how far an interrupted one was.
    pub(crate) afresh: bool,
    /// At most so many documents a second are read from each side; 0: as fast as it goes.
    pub(crate) documents_per_second: u32,
    /// Whether secondaries may be read.
    pub(crate) secondary: bool,
}

/// The same, as `POST /api/v1/verify` takes it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ScopeRequest {
    zone: Option<String>,
    spoke: Option<String>,
    repair: bool,
    purge_foreign: bool,
    quick: bool,
    afresh: bool,
}

impl Scope {
    /// What a caller wants, with what the configuration says.
    pub(crate) fn of(wanted: &ScopeRequest, config: &Config) -> Self {
        Self {
            zone: wanted.zone.as_deref().map(Zone::new),
            spoke: wanted.spoke.as_deref().map(Zone::new),
            repair: wanted.repair,
            purge_foreign: wanted.purge_foreign,
            quick: wanted.quick,
            afresh: wanted.afresh,
            ..Self::scheduled(config)
        }
    }

    /// Everything, as the configuration says.
    pub(crate) fn scheduled(config: &Config) -> Self {
        let verify = &config.verify;
        Self { documents_per_second: verify.documents_per_second, secondary: verify.secondary, ..Self::default() }
    }

    /// What is wrong with them, if this configuration holds nothing of what they select.
    pub(crate) fn problem(&self, config: &Config) -> Option<String> {
        if let Some(spoke) = &self.spoke
            && !config.spokes.iter().any(|known| known.zone == *spoke)
        {
            return Some(format!("there is no spoke {spoke}"));
        }
        if self.purge_foreign && !self.repair {
            return Some("to purge foreign documents is a repair: ask for both".to_owned());
        }
        if !config.spokes.iter().any(|spoke| self.selects(spoke)) {
            let zone = self.zone.as_ref().map_or("", Zone::as_str);
            return Some(format!("no such spoke holds zone {zone}"));
        }
        None
    }

    /// True if something of this spoke is to be compared.
    pub(super) fn selects(&self, spoke: &Spoke) -> bool {
        let holds = |zone: &Zone| spoke.zone == *zone || spoke.watch.contains(zone);
        self.spoke.as_ref().is_none_or(|wanted| spoke.zone == *wanted) && self.zone.as_ref().is_none_or(holds)
    }

    /// By which an interrupted one is found again.
    pub(super) fn name(&self) -> String {
        let or_all = |zone: &Option<Zone>| zone.as_ref().map_or("*".to_owned(), Zone::to_string);
        format!("{}/{}{}", or_all(&self.spoke), or_all(&self.zone), if self.quick { " quick" } else { "" })
    }
}
