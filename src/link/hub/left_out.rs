//! A spoke's own changes, left out of the hub's stream.
//!
//! A spoke's own change comes back from the hub for two purposes: to detect a concurrent hub edit, and to reach other
//! holders of the zone. If neither applies, the stream leaves out the transactions of the zone's uplink. The first hub
//! edit in the zone ends the omission: the stream is opened again at the edit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::rules::names::Zone;

/// Time after a hub edit during which the zone's own changes stay in the stream: each switch opens a new stream at the
/// hub.
const AFTER_HUB_EDIT: Duration = Duration::from_secs(60);

/// The decision about a spoke's own changes: in the stream, or left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeftOut {
    is_left_out: bool,
    /// The time of the last hub edit during an omission of own changes.
    edited: Option<Instant>,
}

/// The state of a spoke at the end of a reply, before the reply is distributed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// A hub edit in the spoke's zone ended the reply, because own changes were left out.
    pub(super) ended_by_hub_edit: bool,
    /// The reply holds a hub edit in the spoke's zone.
    pub(super) has_hub_edit: bool,
    /// No other spoke holds the spoke's zone.
    pub(super) is_only_holder: bool,
    /// The spoke's writer has applied everything, and remembers no hub edit.
    pub(super) needs_no_own_changes: bool,
}

impl LeftOut {
    pub(super) fn is_left_out(self) -> bool {
        self.is_left_out
    }

    /// Decides about the spoke's own changes after the reply. Call before the reply is distributed.
    pub(super) fn decide(&mut self, standing: Standing, now: Instant) {
        if standing.ended_by_hub_edit {
            *self = Self { is_left_out: false, edited: Some(now) };
        } else if !self.is_left_out {
            let is_quiet = self.edited.is_none_or(|edited| now.duration_since(edited) >= AFTER_HUB_EDIT);
            self.is_left_out =
                is_quiet && standing.is_only_holder && standing.needs_no_own_changes && !standing.has_hub_edit;
        }
    }

    /// Reacts to new routes: another holder of the zone needs the owner's changes.
    pub(super) fn rerouted(&mut self, is_only_holder: bool) {
        self.is_left_out &= is_only_holder;
    }
}

/// The first hub edit in a left-out zone, by event number, and all left-out zones with a hub edit. The reply must end
/// before the hub edit: later own changes may meet the edit, but are missing.
pub(super) fn cut(
    left_out: &BTreeSet<Zone>,
    first_hub_edit: impl Fn(&Zone) -> Option<u32>,
) -> (Option<u32>, Vec<Zone>) {
    let edits = left_out.iter().filter_map(|zone| Some((zone.clone(), first_hub_edit(zone)?)));
    let (edited, events): (Vec<Zone>, Vec<u32>) = edits.unzip();
    (events.into_iter().min(), edited)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Standing =
        Standing { ended_by_hub_edit: false, has_hub_edit: false, is_only_holder: true, needs_no_own_changes: true };

    fn after(standing: Standing) -> bool {
        let mut left_out = LeftOut::default();
        left_out.decide(standing, Instant::now());
        left_out.is_left_out()
    }

    #[test]
    fn own_changes_are_left_out_where_nobody_needs_them() {
        assert!(after(IDLE));
        assert!(!after(Standing { has_hub_edit: true, ..IDLE }), "an own change may meet the hub edit");
        assert!(!after(Standing { is_only_holder: false, ..IDLE }), "another spoke takes them");
        assert!(!after(Standing { needs_no_own_changes: false, ..IDLE }), "the writer is behind");
    }

    #[test]
    fn a_hub_edit_brings_own_changes_back_for_a_minute() {
        let (mut left_out, now) = (LeftOut::default(), Instant::now());
        left_out.decide(IDLE, now);
        left_out.decide(Standing { ended_by_hub_edit: true, ..IDLE }, now);
        assert!(!left_out.is_left_out());
        left_out.decide(IDLE, now + AFTER_HUB_EDIT / 2);
        assert!(!left_out.is_left_out());
        left_out.decide(IDLE, now + AFTER_HUB_EDIT);
        assert!(left_out.is_left_out());
    }

    #[test]
    fn a_busy_writer_does_not_bring_left_out_changes_back() {
        let (mut left_out, now) = (LeftOut::default(), Instant::now());
        left_out.decide(IDLE, now);
        left_out.decide(Standing { needs_no_own_changes: false, ..IDLE }, now);
        assert!(left_out.is_left_out());
    }

    #[test]
    fn a_new_holder_brings_own_changes_back_immediately() {
        let mut left_out = LeftOut::default();
        left_out.decide(IDLE, Instant::now());
        left_out.rerouted(true);
        assert!(left_out.is_left_out());
        left_out.rerouted(false);
        assert!(!left_out.is_left_out());
    }

    #[test]
    fn a_reply_is_cut_at_the_first_hub_edit_of_a_zone_left_out() {
        let zones = |names: &[&str]| names.iter().map(|name| Zone::new(name)).collect::<BTreeSet<_>>();
        let edits = |zone: &Zone| match zone.as_str() {
            "DFW" => Some(7),
            "HOU" => Some(3),
            _ => None,
        };
        assert_eq!(cut(&zones(&["BOS"]), edits), (None, vec![]));
        assert_eq!(cut(&zones(&["BOS", "DFW"]), edits), (Some(7), vec![Zone::new("DFW")]));
        assert_eq!(cut(&zones(&["DFW", "HOU"]), edits), (Some(3), vec![Zone::new("DFW"), Zone::new("HOU")]));
    }
}
