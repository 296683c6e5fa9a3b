//! Selection and options of a verification.

use serde::Deserialize;

use crate::config::{Config, Spoke};
use crate::rules::names::Zone;

/// Selection and options of a verification.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Only this zone, at every spoke with the zone.
    pub(crate) zone: Option<Zone>,
    /// Only the zones held by the spoke that owns this zone.
    pub(crate) spoke: Option<Zone>,
    pub(crate) repair: bool,
    /// Remove documents written by applications at spokes that do not own the zone. Requires `repair`.
    pub(crate) purge_foreign: bool,
    /// Compare digests first, and read only buckets with different digests.
    pub(crate) quick: bool,
    /// Discard the progress of an interrupted verification.
    pub(crate) afresh: bool,
    /// Maximum read rate from each side, in documents per second. 0 means unlimited.
    pub(crate) documents_per_second: u32,
    pub(crate) secondary: bool,
}

/// Body of `POST /api/v1/verify`. The fields have the meaning of their namesakes in [`Scope`].
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
    /// Combines a caller's request with the configured rate and read preference.
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

    /// Everything, with the configured rate and read preference.
    pub(crate) fn scheduled(config: &Config) -> Self {
        let verify = &config.verify;
        Self { documents_per_second: verify.documents_per_second, secondary: verify.secondary, ..Self::default() }
    }

    /// Reason why the scope is invalid or selects nothing in this configuration, if any.
    pub(crate) fn problem(&self, config: &Config) -> Option<String> {
        if let Some(spoke) = &self.spoke
            && !config.spokes.iter().any(|known| known.zone == *spoke)
        {
            return Some(format!("there is no spoke {spoke}"));
        }
        if self.purge_foreign && !self.repair {
            return Some("purging foreign documents requires a repair: ask for both".to_owned());
        }
        if !config.spokes.iter().any(|spoke| self.selects(spoke)) {
            let zone = self.zone.as_ref().map_or("", Zone::as_str);
            return Some(format!("no selected spoke holds zone {zone}"));
        }
        None
    }

    /// True if the scope includes a zone of this spoke.
    pub(super) fn selects(&self, spoke: &Spoke) -> bool {
        let holds = |zone: &Zone| spoke.zone == *zone || spoke.watch.contains(zone);
        self.spoke.as_ref().is_none_or(|wanted| spoke.zone == *wanted) && self.zone.as_ref().is_none_or(holds)
    }

    /// Name under which an interrupted verification is found again.
    pub(super) fn name(&self) -> String {
        let or_all = |zone: &Option<Zone>| zone.as_ref().map_or("*".to_owned(), Zone::to_string);
        format!("{}/{}{}", or_all(&self.spoke), or_all(&self.zone), if self.quick { " quick" } else { "" })
    }
}
