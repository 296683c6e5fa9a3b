//! Result of a verification.

use serde::Serialize;
use serde_json::Value;

/// Maximum number of findings listed. Further findings are only counted.
pub(crate) const TOLD: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The hub has the document, and the spoke does not.
    Missing,
    /// The spoke has the document, and the hub does not, or only in a zone not held by the spoke.
    Extra,
    /// Both sides have the document, with different bytes.
    Different,
    /// An application wrote the document at the spoke in a zone not owned by the spoke, and the hub lacks the
    /// document.
    Foreign,
    /// The spoke's document has no partition key.
    Unstamped,
    /// A destination refuses the document: a dead letter exists.
    Parked,
}

impl Kind {
    /// Name of the kind in reports, logs and the status.
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

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) spoke: String,
    pub(crate) ns: String,
    /// Zone of the part. `null` for documents in zones not held by the spoke.
    pub(crate) zone: Option<String>,
    /// `_id` as relaxed extended JSON.
    pub(crate) id: Value,
    pub(crate) kind: Kind,
    /// Paths at which the two versions differ. Empty if only one side has the document.
    pub(crate) paths: Vec<String>,
    /// Outcome of the repair, in words. `null` if no repair was attempted.
    pub(crate) repair: Option<String>,
    /// True if the repair made both sides equal.
    pub(crate) repaired: bool,
}

/// A comparison without a result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Untold {
    pub(crate) spoke: String,
    /// `null` for all zones.
    pub(crate) zone: Option<String>,
    pub(crate) reason: String,
}

#[derive(Debug, Default)]
pub(super) struct PartReport {
    pub(super) documents: u64,
    pub(super) findings: Vec<Finding>,
    /// Number of findings not listed.
    pub(super) more: u64,
    pub(super) untold: Vec<Untold>,
}

impl PartReport {
    pub(super) fn untold(untold: Untold) -> Self {
        Self { untold: vec![untold], ..Self::default() }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) documents: u64,
    /// Number of differing documents, except repaired documents.
    pub(crate) differences: u64,
    pub(crate) repaired: u64,
    /// Differing documents, including repaired documents.
    pub(crate) findings: Vec<Finding>,
    /// Number of differing documents not listed in `findings`.
    pub(crate) more: u64,
    /// Comparisons without a result.
    pub(crate) untold: Vec<Untold>,
}

/// Conclusion from a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Equal,
    Different,
    /// No difference was found, but the comparison is incomplete.
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

    /// Computes the totals after all parts are added.
    pub(super) fn finish(&mut self, was_stopped: bool) {
        self.repaired = self.findings.iter().filter(|finding| finding.repaired).count() as u64;
        self.differences = self.findings.len() as u64 - self.repaired + self.more;
        let place = |finding: &Finding| {
            (finding.spoke.clone(), finding.ns.clone(), finding.zone.clone(), finding.kind.as_str())
        };
        self.findings.sort_by_key(place);
        if was_stopped {
            let reason = "the verification was stopped: the next verification resumes here".to_owned();
            self.untold.push(Untold { spoke: "*".to_owned(), zone: None, reason });
        }
    }

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
    fn only_a_complete_comparison_without_differences_is_equal() {
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
    fn findings_beyond_the_limit_are_still_counted() {
        let mut report = Report::default();
        report.add(PartReport { findings: vec![finding(false); TOLD + 5], more: 2, ..PartReport::default() });
        report.finish(false);
        assert_eq!((report.findings.len(), report.differences), (TOLD, TOLD as u64 + 7));
    }
}
