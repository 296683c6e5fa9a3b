//! What a verification found.

use serde::Serialize;
use serde_json::Value;

/// More findings than this are counted, and not told one by one.
pub(crate) const TOLD: usize = 10_000;

/// How a document differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The hub has it, the spoke does not.
    Missing,
    /// The spoke has it, the hub does not.
    Extra,
    /// Both have it, with other bytes.
    Different,
    /// An application wrote it at the spoke in a zone that is not the spoke's, and the hub does not have it.
    Foreign,
    /// It has no partition key at the spoke.
    Unstamped,
    /// A destination refuses it: there is a dead letter.
    Parked,
}

impl Kind {
    /// As it is said everywhere.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Foreign => "foreign",
            Self::Unstamped => "unstamped",
            Self::Parked => "parked",
        }
    }
}

/// A document that differs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// The spoke that it was compared at.
    pub(crate) spoke: String,
    /// The collection.
    pub(crate) ns: String,
    /// The zone; `null` for documents of zones that the spoke does not hold.
    pub(crate) zone: Option<String>,
    /// Its `_id`, as relaxed extended JSON.
    pub(crate) id: Value,
    /// How it differs.
    pub(crate) kind: Kind,
    /// Where it differs, if both sides have it.
    pub(crate) paths: Vec<String>,
    /// What was done about it.
    pub(crate) repair: Option<String>,
    /// Whether it is equal now.
    pub(crate) repaired: bool,
}

/// Something that could not be compared.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Untold {
    /// The spoke.
    pub(crate) spoke: String,
    /// The zone; `null`: all of them.
    pub(crate) zone: Option<String>,
    /// Why.
    pub(crate) reason: String,
}

/// What one part came to.
#[derive(Debug, Default)]
pub(super) struct PartReport {
    pub(super) documents: u64,
    pub(super) findings: Vec<Finding>,
    /// Findings that are not told one by one.
    pub(super) more: u64,
    pub(super) untold: Vec<Untold>,
}

impl PartReport {
    pub(super) fn untold(untold: Untold) -> Self {
        Self { untold: vec![untold], ..Self::default() }
    }
}

/// What all of it came to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// How many documents were compared.
    pub(crate) documents: u64,
    /// How many differ, and were not mended.
    pub(crate) differences: u64,
    /// How many were mended.
    pub(crate) repaired: u64,
    /// What differs, or did.
    pub(crate) findings: Vec<Finding>,
    /// Further documents that differ, which are not told one by one.
    pub(crate) more: u64,
    /// What could not be compared.
    pub(crate) untold: Vec<Untold>,
}

/// What a report means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is equal.
    Equal,
    /// Something differs.
    Different,
    /// It cannot be told.
    Untold,
}

impl Report {
    pub(super) fn add(&mut self, part: PartReport) {
        self.documents += part.documents;
        self.more += part.more;
        let room = TOLD.saturating_sub(self.findings.len());
        self.more += part.findings.len().saturating_sub(room) as u64;
        self.findings.extend(part.findings.into_iter().take(room));
        self.untold.extend(part.untold);
    }

    /// Counts, once all parts are added.
    pub(super) fn finish(&mut self, was_stopped: bool) {
        self.repaired = self.findings.iter().filter(|finding| finding.repaired).count() as u64;
        self.differences = self.findings.len() as u64 - self.repaired + self.more;
        let place = |finding: &Finding| {
            (finding.spoke.clone(), finding.ns.clone(), finding.zone.clone(), finding.kind.as_str())
        };
        self.findings.sort_by_key(place);
        if was_stopped {
            let reason = "it was stopped: the next one goes on where this one was".to_owned();
            self.untold.push(Untold { spoke: "*".to_owned(), zone: None, reason });
        }
    }

    /// What it means.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.differences > 0 {
            Verdict::Different
        } else if self.untold.is_empty() {
            Verdict::Equal
        } else {
            Verdict::Untold
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(repaired: bool) -> Finding {
        Finding {
            spoke: "DFW".to_owned(),
            ns: "a.b".to_owned(),
            zone: None,
            id: Value::Null,
            kind: Kind::Extra,
            paths: Vec::new(),
            repair: None,
            repaired,
        }
    }

    #[test]
    fn only_what_was_compared_and_is_equal_counts_as_equal() {
        let finished = |findings: Vec<Finding>, stopped| {
            let mut report = Report::default();
            report.add(PartReport { findings, ..PartReport::default() });
            report.finish(stopped);
            report.verdict()
        };
        assert_eq!(finished(vec![], false), Verdict::Equal);
        assert_eq!(finished(vec![finding(true)], false), Verdict::Equal);
        assert_eq!(finished(vec![], true), Verdict::Untold);
        assert_eq!(finished(vec![finding(true), finding(false)], true), Verdict::Different);
    }

    #[test]
    fn what_is_not_told_one_by_one_is_still_counted() {
        let mut report = Report::default();
        report.add(PartReport { findings: vec![finding(false); TOLD + 5], more: 2, ..PartReport::default() });
        report.finish(false);
        assert_eq!((report.findings.len(), report.differences), (TOLD, TOLD as u64 + 7));
    }
}
