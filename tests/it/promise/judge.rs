//! The judgement at rest: pure functions of what applications wrote and of what is there.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, Document, RawDocumentBuf};

use super::log::{Outcome, Reach, Written};
use crate::support::site::HUB;

/// What all servers hold while nobody writes.
#[derive(Clone, Debug, Default)]
pub struct Rest {
    /// The zones that each spoke holds.
    pub held: BTreeMap<String, Vec<String>>,
    /// All documents of each server, by `_id`.
    pub documents: BTreeMap<String, BTreeMap<String, RawDocumentBuf>>,
    /// All copies of removed versions.
    pub aside: Vec<Document>,
    /// All open dead letters, with the server.
    pub letters: Vec<(String, Document)>,
    /// Spoke and `_id` of each dropped dead letter.
    pub dropped: BTreeSet<(String, String)>,
    /// Spoke and `_id` of each document registered as foreign.
    pub foreign: BTreeSet<(String, String)>,
    pub losses: Vec<Loss>,
}

/// What went with a dropped collection or with a disk.
#[derive(Clone, Debug)]
pub struct Loss {
    pub site: &'static str,
    /// Milliseconds since the beginning of the programme: what was written meanwhile may be lost as well.
    pub from: u128,
    pub until: u128,
    /// Values that no other server's documents had.
    pub only_here: BTreeSet<String>,
}

impl Loss {
    /// A write may be remembered a moment after it was made.
    const MOMENT: u128 = 200;

    fn has(&self, written: &Written, value: &String) -> bool {
        let is_meanwhile = (self.from..=self.until + Self::MOMENT).contains(&written.at);
        self.only_here.contains(value) || (written.site == self.site && is_meanwhile)
    }
}

/// Every text in these documents.
pub fn values_of(documents: &[RawDocumentBuf]) -> BTreeSet<String> {
    let mut values = BTreeSet::new();
    for document in documents {
        collect(&Bson::Document(read(document)), &mut values);
    }
    values
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub kind: &'static str,
    pub document: String,
    pub what: String,
}

pub fn judge(log: &[Written], rest: &Rest) -> Vec<Finding> {
    let mut findings = differing(rest);
    findings.extend(letters_without_a_reason(rest));
    let mut by_document: BTreeMap<&str, Vec<&Written>> = BTreeMap::new();
    for written in log {
        by_document.entry(&written.document).or_default().push(written);
    }
    let kept = rest.kept();
    for (document, writes) in by_document {
        findings.extend(lost(document, &writes, rest, &kept));
    }
    findings
}

impl Rest {
    /// Every value in a copy of a removed version, or in a dead letter.
    fn kept(&self) -> BTreeSet<String> {
        let mut kept = BTreeSet::new();
        let letters = self.letters.iter().map(|(_, letter)| letter);
        for document in self.aside.iter().chain(letters) {
            collect(&Bson::Document(document.clone()), &mut kept);
        }
        kept
    }

    fn values(&self, document: &str) -> BTreeSet<String> {
        let mut values = BTreeSet::new();
        for documents in self.documents.values() {
            if let Some(found) = documents.get(document) {
                collect(&Bson::Document(read(found)), &mut values);
            }
        }
        values
    }

    /// Whether an operator has been told about the document at this spoke, or an application of the spoke wrote it in
    /// another spoke's zone.
    fn is_told(&self, spoke: &str, document: &str) -> bool {
        let is_in = |set: &BTreeSet<(String, String)>| set.contains(&(spoke.to_owned(), document.to_owned()));
        let has_letter = self.letters.iter().any(|(_, letter)| {
            letter.get_str("zone").is_ok_and(|zone| zone == spoke) && letter_id(letter).as_deref() == Some(document)
        });
        has_letter || is_in(&self.dropped) || is_in(&self.foreign)
    }

    /// The hub was restored: a document that changed its zone since the backup is in both zones, as letters say, and
    /// nobody brings the documents that only watchers have.
    fn is_hub_restored(&self) -> bool {
        self.losses.iter().any(|loss| loss.site == HUB)
    }

    fn has_any_letter(&self, document: &str) -> bool {
        self.letters.iter().any(|(_, letter)| letter_id(letter).as_deref() == Some(document))
    }
}

pub fn letter_id(letter: &Document) -> Option<String> {
    letter.get_document("_id").ok()?.get_str("document").ok().map(str::to_owned)
}

fn read(document: &RawDocumentBuf) -> Document {
    Document::try_from(document.clone()).expect("a valid document")
}

/// All texts in a value, at any depth.
fn collect(value: &Bson, into: &mut BTreeSet<String>) {
    match value {
        Bson::String(text) => drop(into.insert(text.clone())),
        Bson::Document(document) => document.values().for_each(|value| collect(value, into)),
        Bson::Array(values) => values.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

fn zone(document: Option<&RawDocumentBuf>) -> Option<String> {
    document?.get_str("_pk").ok().map(str::to_owned)
}

/// Each held zone is equal at the hub and at the spoke, byte for byte, unless somebody has been told.
fn differing(rest: &Rest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (spoke, held) in &rest.held {
        let (hub, here) = (&rest.documents[HUB], &rest.documents[spoke]);
        let all: BTreeSet<&String> = hub.keys().chain(here.keys()).collect();
        for document in all {
            let (above, below) = (hub.get(document), here.get(document));
            let is_held = |version| zone(version).is_some_and(|zone| held.contains(&zone));
            let above = above.filter(|_| is_held(above));
            let below = below.filter(|_| is_held(below));
            let bytes = |version: Option<&RawDocumentBuf>| version.map(|version| version.as_bytes().to_vec());
            let is_at_owner = |own: String| {
                let there = rest.documents.get(&own).and_then(|documents| documents.get(document));
                zone(there) == Some(own)
            };
            let has_owner = [above, below].into_iter().filter_map(zone).all(is_at_owner);
            let is_of_restore = rest.is_hub_restored() && (rest.has_any_letter(document) || !has_owner);
            if bytes(above) != bytes(below) && !rest.is_told(spoke, document) && !is_of_restore {
                let what = format!("hub and {spoke}: {:?}, {:?}", above.map(read), below.map(read));
                findings.push(Finding { kind: "differs", document: document.clone(), what });
            }
        }
    }
    findings
}

/// The server's code for a unique value that is taken.
const DUPLICATE_KEY: i32 = 11000;

/// A dead letter that is still there has a lasting reason: a taken unique value, or a taken `_id`.
fn letters_without_a_reason(rest: &Rest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (server, letter) in &rest.letters {
        let document = letter_id(letter).unwrap_or_default();
        let reason = letter.get_document("reason").expect("a letter has a reason");
        let zone = letter.get_str("zone").expect("a letter has a zone");
        let there = rest.documents[server].get(&document).map(read);
        let source = if server == HUB { zone } else { HUB };
        let refused = rest.documents[source].get(&document).map(read);
        let lineage = |version: &Option<Document>| version.as_ref().and_then(|version| version.get("l").cloned());
        let is_another = || rest.is_hub_restored() || lineage(&there) != lineage(&refused);
        let is_id_taken = there.is_some() && refused.is_some() && is_another();
        let claimed = refused.as_ref().and_then(|refused| refused.get("u")).cloned();
        let others = rest.documents[server].iter().filter(|(id, _)| **id != document);
        let is_value_taken =
            claimed.is_some() && others.map(|(_, other)| read(other)).any(|other| other.get("u") == claimed.as_ref());
        if reason.get_i32("code").ok() != Some(DUPLICATE_KEY) || !(is_id_taken || is_value_taken) {
            let what = format!("at {server}, of {zone}: {reason}; there {there:?}, at the source {refused:?}");
            findings.push(Finding { kind: "letter without a reason", document, what });
        }
    }
    findings
}

/// Every acknowledged value is in a document, in a copy of a removed version, in a dead letter, or was overruled.
fn lost(document: &str, writes: &[&Written], rest: &Rest, kept: &BTreeSet<String>) -> Vec<Finding> {
    let there = rest.values(document);
    let mut findings = Vec::new();
    for (index, written) in writes.iter().enumerate() {
        let Some(value) = written.value.as_ref().filter(|_| written.outcome == Outcome::Written) else { continue };
        let is_gone_with_a_server = || rest.losses.iter().any(|loss| loss.has(written, value));
        if there.contains(value) || kept.contains(value) || is_gone_with_a_server() {
            continue;
        }
        let past = past(writes, index);
        let zones: BTreeSet<&String> =
            writes.iter().filter(|other| other.lineage == written.lineage).filter_map(|w| w.zone.as_ref()).collect();
        let overrules = |(other, by): (usize, &&Written)| {
            other != index
                && !past.contains(&other)
                && match by.reach {
                    Reach::New => by.zone.as_ref().is_none_or(|zone| zones.contains(zone)),
                    // Within a zone, an `_id` is one document: a later whole version or delete is about any earlier.
                    reach => {
                        let is_same = by.lineage == written.lineage;
                        let is_of_zone = by.zone_before().is_some_and(|zone| zones.iter().any(|other| *other == zone));
                        let is_concurrent = || !self::past(writes, other).contains(&index);
                        // Somebody who had the value before them has decided about it.
                        let saw = || by.values_before().contains(value);
                        ((is_same || saw()) && reach == written.field())
                            || ((is_same || is_of_zone || saw())
                                && (reach == Reach::Whole || (by.travels_whole && is_concurrent())))
                    }
                }
        };
        if !writes.iter().enumerate().any(overrules) {
            let what = format!("{value}, by {} at {}", written.change, written.site);
            findings.push(Finding { kind: "lost", document: document.to_owned(), what });
        }
    }
    findings
}

impl Written {
    fn zone_before(&self) -> Option<&str> {
        self.before.as_ref()?.get_str("_pk").ok()
    }

    /// The values that the application had before it.
    fn values_before(&self) -> BTreeSet<String> {
        let mut values = BTreeSet::new();
        if let Some(before) = &self.before {
            collect(&Bson::Document(before.clone()), &mut values);
        }
        values
    }

    /// The field that holds the write's value.
    fn field(&self) -> Reach {
        match self.reach {
            Reach::Whole | Reach::New => Reach::Field("w"),
            field @ Reach::Field(_) => field,
        }
    }
}

/// The writes that the application could know of when it made this one.
fn past(writes: &[&Written], index: usize) -> BTreeSet<usize> {
    let (mut past, mut todo) = (BTreeSet::new(), vec![index]);
    while let Some(next) = todo.pop() {
        let written = writes[next];
        let seen = written.values_before();
        for (other, earlier) in writes.iter().enumerate() {
            let is_of_site = earlier.site == written.site && earlier.order < written.order;
            let is_seen = earlier.value.as_ref().is_some_and(|value| seen.contains(value));
            let is_before =
                earlier.phase < written.phase || (earlier.phase == written.phase && (is_of_site || is_seen));
            if other != next && is_before && past.insert(other) {
                todo.push(other);
            }
        }
    }
    past.remove(&index);
    past
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    /// A write of document `d` in zone DFW, with the value that the application saw in the same field.
    fn write(order: usize, site: &'static str, reach: Reach, value: &str, saw: Option<&str>) -> Written {
        Written {
            phase: 0,
            order,
            at: 0,
            site,
            document: "d".to_owned(),
            value: Some(value.to_owned()),
            reach,
            lineage: "v0".to_owned(),
            zone: Some("DFW".to_owned()),
            before: saw.map(|saw| doc! { "a": saw }),
            outcome: Outcome::Written,
            change: String::new(),
            travels_whole: false,
        }
    }

    fn raw(document: Document) -> RawDocumentBuf {
        RawDocumentBuf::try_from(&document).unwrap()
    }

    fn rest(hub: Document, spoke: Document) -> Rest {
        let at = |document: Document| BTreeMap::from([("d".to_owned(), raw(document))]);
        Rest {
            held: BTreeMap::from([("DFW".to_owned(), vec!["DFW".to_owned()])]),
            documents: BTreeMap::from([(HUB.to_owned(), at(hub)), ("DFW".to_owned(), at(spoke))]),
            ..Rest::default()
        }
    }

    fn same(document: Document) -> Rest {
        rest(document.clone(), document)
    }

    fn kinds(log: &[Written], rest: &Rest) -> Vec<&'static str> {
        judge(log, rest).into_iter().map(|finding| finding.kind).collect()
    }

    const A: Reach = Reach::Field("a");

    #[test]
    fn a_value_that_is_nowhere_and_that_nothing_overruled_is_lost() {
        let log = [write(0, "DFW", Reach::New, "v0", None), write(1, "DFW", A, "v1", None)];
        assert_eq!(kinds(&log, &same(doc! { "_pk": "DFW", "w": "v0", "a": "v1" })), [""; 0]);
        let without = same(doc! { "_pk": "DFW", "w": "v0" });
        assert_eq!(kinds(&log, &without), ["lost"]);
        let aside = Rest { aside: vec![doc! { "document": { "a": "v1" } }], ..without };
        assert_eq!(kinds(&log, &aside), [""; 0]);
    }

    #[test]
    fn a_concurrent_write_of_the_field_overrules_and_one_that_was_seen_does_not() {
        let log = |saw| [write(0, HUB, A, "v1", None), write(0, "DFW", A, "v2", saw)];
        let first = same(doc! { "_pk": "DFW", "a": "v1" });
        assert_eq!(kinds(&log(None), &first), [""; 0]);
        assert_eq!(kinds(&log(Some("v1")), &first), ["lost"]);
        let other = [write(0, HUB, Reach::Field("b"), "v1", None), write(0, "DFW", A, "v2", None)];
        assert_eq!(kinds(&other, &same(doc! { "_pk": "DFW", "b": "v1" })), ["lost"]);
    }

    #[test]
    fn a_concurrent_change_that_travels_as_the_whole_document_overrules_every_field() {
        let whole = Written { travels_whole: true, ..write(0, "DFW", Reach::Field("b"), "v2", None) };
        let rest = same(doc! { "_pk": "DFW", "b": "v2" });
        assert_eq!(kinds(&[write(0, HUB, A, "v1", None), whole.clone()], &rest), [""; 0]);
        let saw = Written { before: Some(doc! { "a": "v1" }), ..whole };
        assert_eq!(kinds(&[write(0, HUB, A, "v1", None), saw], &rest), ["lost"]);
    }

    #[test]
    fn a_write_of_another_document_with_the_same_id_overrules_nothing() {
        let mut delete = write(0, "HOU", Reach::Whole, "v9", None);
        (delete.lineage, delete.value) = ("v8".to_owned(), None);
        let log = [write(0, "DFW", A, "v1", None), delete];
        assert_eq!(kinds(&log, &same(doc! { "_pk": "DFW" })), ["lost"]);
    }

    #[test]
    fn a_delete_by_somebody_who_saw_the_value_overrules_it() {
        let mut delete = write(0, "HOU", Reach::Whole, "v9", Some("v1"));
        (delete.lineage, delete.value) = ("v8".to_owned(), None);
        let log = [write(0, "DFW", A, "v1", None), delete];
        assert_eq!(kinds(&log, &same(doc! { "_pk": "DFW" })), [""; 0]);
    }

    #[test]
    fn a_delete_in_the_zone_overrules_whatever_the_id_stood_for() {
        let mut delete = write(0, "DFW", Reach::Whole, "v9", None);
        (delete.lineage, delete.value, delete.before) = ("v8".to_owned(), None, Some(doc! { "_pk": "DFW" }));
        let log = [write(0, HUB, Reach::New, "v1", None), delete];
        assert_eq!(kinds(&log, &same(doc! { "_pk": "DFW" })), [""; 0]);
    }

    #[test]
    fn an_earlier_write_of_the_same_site_overrules_nothing() {
        let log = [write(0, "DFW", A, "v1", None), write(1, "DFW", A, "v2", None)];
        assert_eq!(kinds(&log, &same(doc! { "_pk": "DFW", "a": "v1" })), ["lost"]);
    }

    #[test]
    fn a_value_of_which_nobody_was_told_that_it_is_written_may_be_missing() {
        let unknown = Written { outcome: Outcome::Unknown, ..write(0, "DFW", A, "v1", None) };
        assert_eq!(kinds(&[unknown], &same(doc! { "_pk": "DFW" })), [""; 0]);
    }

    #[test]
    fn versions_differ_if_their_fields_have_another_order_unless_somebody_was_told() {
        let mut rest = rest(doc! { "_pk": "DFW", "a": 1, "b": 2 }, doc! { "_pk": "DFW", "b": 2, "a": 1 });
        assert_eq!(kinds(&[], &rest), ["differs"]);
        rest.foreign.insert(("DFW".to_owned(), "d".to_owned()));
        assert_eq!(kinds(&[], &rest), [""; 0]);
    }

    #[test]
    fn a_dead_letter_has_a_reason_only_while_the_id_or_the_unique_value_is_taken() {
        let letter = doc! { "_id": { "document": "d" }, "zone": "DFW", "reason": { "code": DUPLICATE_KEY } };
        let with = |hub, spoke| Rest { letters: vec![(HUB.to_owned(), letter.clone())], ..rest(hub, spoke) };
        let same = with(doc! { "_pk": "DFW", "l": 1 }, doc! { "_pk": "DFW", "l": 1, "u": 1 });
        assert_eq!(kinds(&[], &same), ["letter without a reason"]);
        let two = with(doc! { "_pk": "HOU", "l": 1 }, doc! { "_pk": "DFW", "l": 2 });
        assert_eq!(kinds(&[], &two), [""; 0]);
        let mut taken = same;
        let hub = taken.documents.get_mut(HUB).unwrap();
        hub.insert("e".to_owned(), raw(doc! { "_pk": "HOU", "u": 1 }));
        assert_eq!(kinds(&[], &taken), [""; 0]);
    }
}
