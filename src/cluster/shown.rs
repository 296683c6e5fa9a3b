//! What a process reports of its spokes, and what it shows of the others.

use std::collections::{BTreeMap, HashMap};

use super::round::Round;
use crate::mongo::metadata::members::{Report, Saved};
use crate::observe::status::cluster::{ElsewhereView, MemberView};
use crate::observe::status::view::SpokeView;

impl Round<'_> {
    /// The state of each spoke that this process runs.
    pub(super) fn reports(&self) -> Vec<Report> {
        let report = |spoke: &SpokeView| {
            let lags = [spoke.uplink.lag_seconds, spoke.downlink.lag_seconds];
            let lag = lags.into_iter().flatten().reduce(f64::max);
            let comparing = spoke.uplink.comparing || spoke.downlink.comparing;
            Report { zone: spoke.zone.clone(), state: spoke.state.as_str().to_owned(), lag, comparing }
        };
        self.board.view().own_spokes().map(report).collect()
    }

    /// Names members with another configuration, once each. Members without a common spoke are none of our business.
    pub(super) fn say_differing(&mut self) {
        let mine = &self.member.card;
        let differs = |other: &&Saved| other.card.config != mine.config;
        let differing: Vec<&Saved> = self.member.others.values().filter(differs).collect();
        for other in differing.iter().filter(|other| !self.member.differing.contains(&other.id)) {
            let (process, card) = (other.card.process(), &other.card);
            let only_here = mine.zones.difference(&card.zones).count();
            let only_there = card.zones.difference(&mine.zones).count();
            tracing::warn!(
                process,
                only_here,
                only_there,
                "the configurations of two members differ: give every member the same file. Spokes that only one \
                 member knows run there alone"
            );
        }
        self.member.differing = differing.into_iter().map(|other| other.id.clone()).collect();
    }

    /// Shows the members on the status board.
    pub(super) fn show_members(&self, members: &[Saved]) {
        let me = self.me();
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for holder in self.member.leases.values().filter_map(|lease| lease.holder.as_deref()) {
            *held.entry(holder).or_default() += 1;
        }
        let view = |one: &Saved| MemberView {
            id: one.id.clone(),
            host: one.card.host.clone(),
            pid: one.card.pid,
            version: one.card.version.clone(),
            http: one.card.http.clone(),
            is_this: one.id == me,
            is_leaving: one.leaving,
            has_same_configuration: one.card.config == self.member.card.config,
            up_seconds: one.since.as_secs_f64(),
            heartbeat_age_seconds: one.age.as_secs_f64(),
            spokes: held.get(one.id.as_str()).copied().unwrap_or(0),
        };
        self.board.cluster().show_members(members.iter().map(view).collect());
    }

    /// Shows what the other members report of their spokes.
    pub(super) fn show_elsewhere(&self) {
        let mut elsewhere = BTreeMap::new();
        for other in self.member.others.values() {
            let reports: HashMap<&str, &Report> =
                other.spokes.iter().map(|report| (report.zone.as_str(), report)).collect();
            let leases = self.member.leases.iter();
            for (zone, _) in leases.filter(|(_, lease)| lease.holder.as_ref() == Some(&other.id)) {
                let report = reports.get(zone.as_str());
                let view = ElsewhereView {
                    holder: other.card.process(),
                    state: report.map(|report| report.state.clone()),
                    lag_seconds: report.and_then(|report| report.lag),
                    comparing: report.is_none_or(|report| report.comparing),
                };
                elsewhere.insert(zone.to_string(), view);
            }
        }
        self.board.cluster().show_elsewhere(elsewhere);
    }
}
