//! A model of one document, edited at the hub and at the owning spoke, driven through random interleavings.
//!
//! The model performs the work of the links (reads at the source, transactions, restarts) on plain values, and asks the
//! real [`Conflicts`] and [`Ahead`] for decisions. After the applications stop, both sides must hold the same bytes: in
//! the model, the same fields with the same values in the same order. Weakened rules must fail, or the model proves
//! nothing.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::RawBsonRef;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ahead::{Ahead, Standing};
use super::conflicts::{Conflicts, OwnChange};
use super::fields::Fields;
use super::key::Key;

const INTERLEAVINGS: u64 = 60_000;

/// Names and values of fields, in order. `None`: the document does not exist.
type Document = Option<Vec<(u8, u32)>>;

/// Content of a change event.
#[derive(Clone, Debug)]
enum Told {
    /// New values of fields, and removed fields.
    Delta {
        set: Vec<(u8, u32)>,
        unset: Vec<u8>,
    },
    /// A delta without an exact update statement.
    Unclear {
        set: Vec<(u8, u32)>,
        unset: Vec<u8>,
    },
    /// The new document.
    Whole(Vec<(u8, u32)>),
    Delete,
}

impl Told {
    fn fields(&self) -> Fields {
        match self {
            Self::Delta { set, unset } => {
                let names = set.iter().map(|(name, _)| name).chain(unset);
                let names = names.map(|name| name.to_string().into()).collect();
                Fields::Some { names, may_add: !set.is_empty() }
            }
            _ => Fields::All,
        }
    }

    fn apply(&self, document: &mut Document) {
        match self {
            Self::Delta { set, unset } | Self::Unclear { set, unset } => {
                let Some(fields) = document else { return };
                fields.retain(|(name, _)| !unset.contains(name));
                for &(name, value) in set {
                    match fields.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, old)) => *old = value,
                        None => fields.push((name, value)),
                    }
                }
            }
            Self::Whole(fields) => *document = Some(fields.clone()),
            Self::Delete => *document = None,
        }
    }
}

#[derive(Clone, Debug)]
struct Event {
    time: u32,
    change: Told,
    /// Written by a link, not by an application.
    tagged: bool,
}

/// A server.
struct Side {
    document: Document,
    log: Vec<Event>,
    /// The document after each event.
    versions: Vec<Document>,
    /// The document before the first event.
    initial: Document,
    time: u32,
}

impl Side {
    /// The version of the document at this time.
    fn at(&self, time: u32) -> Document {
        let events = self.log.iter().take_while(|event| event.time <= time).count();
        events.checked_sub(1).map_or(&self.initial, |last| &self.versions[last]).clone()
    }

    /// Commits a transaction. Like on a real server, a change without effect leaves no event.
    fn commit(&mut self, changes: &[Told], tagged: bool) -> u32 {
        self.time += 1;
        for change in changes {
            let before = self.document.clone();
            change.apply(&mut self.document);
            if self.document != before {
                self.log.push(Event { time: self.time, change: change.clone(), tagged });
                self.versions.push(self.document.clone());
            }
        }
        self.time
    }
}

/// State of a link, and the batch about to commit.
struct Link {
    ahead: Ahead,
    /// Index of the next event in the source's log.
    next: usize,
    position: u32,
    saved_bounds: HashMap<super::names::Zone, Timestamp>,
    prepared: Option<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    events: usize,
    changes: Vec<Told>,
    edits: Option<Fields>,
    read: Option<u32>,
}

/// The rule under test, or a weakened variant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Real,
    NeverRefresh,
    RefreshUntilPushed,
    NeverReorder,
    ForgetOnRestart,
    ReplayOverReads,
    BatchesForgetThemselves,
}

struct Model {
    rng: StdRng,
    rule: Rule,
    hub: Side,
    spoke: Side,
    up: Link,
    down: Link,
    conflicts: Conflicts,
    /// Saved notes: number and fields.
    notes: Vec<(i64, Fields)>,
    last_push: u32,
    next_value: u32,
    next_note: i64,
    /// True if hub applications edit the document at all.
    hub_edits: bool,
}

fn at(time: u32) -> Timestamp {
    Timestamp { time, increment: 0 }
}

fn key() -> Key {
    Key::new(0, RawBsonRef::Int32(1))
}

fn link() -> Link {
    Link { ahead: Ahead::new(HashMap::new(), 9), next: 0, position: 0, saved_bounds: HashMap::new(), prepared: None }
}

impl Link {
    /// Time at which to read the document for the next events: the time of the last event, or a later bound.
    fn read_from(&self, source: &Side, events: usize) -> u32 {
        let end = source.log[self.next + events - 1].time;
        self.ahead.read_from(at(end)).time
    }
}

impl Model {
    fn new(seed: u64, rule: Rule, hub_edits: bool) -> Self {
        let document = if seed.is_multiple_of(2) { Some(vec![(b'a', 0)]) } else { None };
        let side = || Side {
            document: document.clone(),
            log: Vec::new(),
            versions: Vec::new(),
            initial: document.clone(),
            time: 0,
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            rule,
            hub: side(),
            spoke: side(),
            up: link(),
            down: link(),
            conflicts: Conflicts::new(9),
            notes: Vec::new(),
            last_push: 0,
            next_value: 1,
            next_note: 0,
            hub_edits,
        }
    }

    /// Runs to the end. True if both sides are then equal.
    fn converges(mut self) -> bool {
        for _ in 0..self.rng.random_range(5..60) {
            match self.rng.random_range(0..12) {
                0..3 => self.application(true),
                3..5 if self.hub_edits => self.application(false),
                5..8 => self.uplink(),
                8..11 => self.downlink(),
                11 if self.rng.random_ratio(1, 3) => self.restart(),
                _ => {}
            }
        }
        for _ in 0..400 {
            self.uplink();
            self.downlink();
        }
        assert_eq!(self.up.next, self.spoke.log.len());
        assert_eq!(self.down.next, self.hub.log.len(), "the streams do not fall quiet");
        self.hub.document == self.spoke.document
    }

    fn application(&mut self, at_spoke: bool) {
        let side = if at_spoke { &mut self.spoke } else { &mut self.hub };
        self.next_value += 1;
        let (field, value) = (self.rng.random_range(b'a'..b'e'), self.next_value);
        let change = match (&side.document, self.rng.random_range(0..7)) {
            (None, _) | (Some(_), 1) => Told::Whole(vec![(field, value)]),
            (Some(_), 0) => Told::Delete,
            (Some(_), 2) => Told::Delta { set: vec![], unset: vec![field] },
            (Some(_), 3) => Told::Unclear { set: vec![(field, value)], unset: vec![] },
            (Some(_), _) => Told::Delta { set: vec![(field, value)], unset: vec![] },
        };
        side.commit(&[change], false);
    }

    /// Half of an uplink's work: prepares a batch, or commits the prepared batch.
    fn uplink(&mut self) {
        if let Some(prepared) = self.up.prepared.take() {
            self.push(prepared);
            return;
        }
        let waiting = self.spoke.log.len() - self.up.next;
        if waiting == 0 {
            self.up.position = self.spoke.time;
            self.conflicts.uplink_pushed(at(self.spoke.time), at(self.last_push));
            return;
        }
        let events = self.rng.random_range(1..=waiting.min(4));
        let mut changes = Vec::new();
        let mut must_read = false;
        for event in &self.spoke.log[self.up.next..self.up.next + events] {
            let standing = self.up.ahead.standing(&key(), ["DFW"].into_iter(), at(event.time));
            match (&event.change, standing) {
                _ if event.tagged => {}
                (_, Standing::Ahead) if self.rule != Rule::ReplayOverReads => {}
                (Told::Unclear { .. }, _) | (_, Standing::Unknown) => must_read = true,
                (change, _) => changes.push(change.clone()),
            }
        }
        let mut read = None;
        if must_read {
            let time = self.read_time(self.up.read_from(&self.spoke, events), self.spoke.time);
            read = Some(time);
            changes = vec![self.spoke.at(time).map_or(Told::Delete, Told::Whole)];
        }
        self.up.prepared = Some(Prepared { events, changes, edits: None, read });
    }

    /// Reads at the end of the batch, or at the present time if the server has dropped the older snapshot.
    fn read_time(&mut self, end_of_batch: u32, now: u32) -> u32 {
        if self.rng.random() { end_of_batch } else { now }
    }

    fn push(&mut self, mut prepared: Prepared) {
        let mut document = self.hub.document.clone();
        let misses = prepared.changes.iter().any(|change| {
            let misses = matches!(change, Told::Delta { .. }) && document.is_none();
            change.apply(&mut document);
            misses
        });
        if misses {
            let time = self.read_time(self.up.read_from(&self.spoke, prepared.events), self.spoke.time);
            prepared.read = Some(time);
            prepared.changes = vec![self.spoke.at(time).map_or(Told::Delete, Told::Whole)];
        }
        let time = self.hub.commit(&prepared.changes, true);
        self.last_push = time;
        self.up.next += prepared.events;
        self.up.position = self.spoke.log[self.up.next - 1].time;
        let reads = prepared.read.map(|read| ("DFW", at(read)));
        self.up.saved_bounds = self.up.ahead.bounds(reads.into_iter());
        if let Some(read) = prepared.read {
            self.up.ahead.has_read(key(), ["DFW"].into_iter(), at(read));
        }
        self.up.ahead.advance(at(self.up.position));
        self.conflicts.uplink_pushed(at(self.up.position), at(time));
    }

    /// Half of a downlink's work: prepares a batch, or commits the prepared batch.
    fn downlink(&mut self) {
        if let Some(prepared) = self.down.prepared.take() {
            self.pull(prepared);
            return;
        }
        let waiting = self.hub.log.len() - self.down.next;
        if waiting == 0 {
            return;
        }
        // Up to 4 events in a batch, so a hub edit and a later echo can meet in the same batch.
        let events = self.rng.random_range(1..=waiting.min(4));
        let mut prepared = Prepared { events, changes: Vec::new(), edits: None, read: None };
        let (mut whole, mut order) = (false, false);
        let mut edits: Option<Fields> = None;
        for event in &self.hub.log[self.down.next..self.down.next + events] {
            let standing = self.down.ahead.standing(&key(), ["DFW"].into_iter(), at(event.time));
            // An echo: the real rule decides, or a weakened variant.
            if event.tagged {
                if self.rule == Rule::RefreshUntilPushed {
                    self.conflicts.downlink_passed(at(u32::MAX));
                }
                if standing == Standing::Ahead && self.rule != Rule::ReplayOverReads {
                    continue;
                }
                let pending = edits.as_ref().filter(|_| self.rule != Rule::BatchesForgetThemselves);
                match self.conflicts.own_change(&key(), &event.change.fields(), at(event.time), pending) {
                    OwnChange::Refresh if self.rule != Rule::NeverRefresh => {
                        whole = true;
                        edits = united(edits, Fields::All);
                    }
                    OwnChange::Reorder if self.rule != Rule::NeverReorder => {
                        order = true;
                        edits = united(edits, Fields::order());
                    }
                    _ => {}
                }
                continue;
            }
            // A hub edit: skipped if already contained, read whole if not repeatable, else applied as a delta.
            match (&event.change, standing) {
                (_, Standing::Ahead) if self.rule != Rule::ReplayOverReads => {}
                (Told::Unclear { .. }, _) | (_, Standing::Unknown) => {
                    whole = true;
                    edits = united(edits, Fields::All);
                }
                (change, _) => {
                    edits = united(edits, change.fields());
                    prepared.changes.push(change.clone());
                }
            }
        }
        // A read of the whole document replaces the prepared changes, and also settles the order of the fields.
        prepared.edits = edits;
        if whole {
            self.read_at_hub(&mut prepared);
        } else if order && self.hub.document.is_some() {
            // The commit takes only the order of the fields from the hub's present document.
            prepared.changes.push(Told::Unclear { set: self.hub.document.clone().unwrap_or_default(), unset: vec![] });
        }
        self.down.prepared = Some(prepared);
    }

    fn read_at_hub(&mut self, prepared: &mut Prepared) {
        let time = self.read_time(self.down.read_from(&self.hub, prepared.events), self.hub.time);
        prepared.read = Some(time);
        prepared.edits = Some(Fields::All);
        prepared.changes = vec![self.hub.at(time).map_or(Told::Delete, Told::Whole)];
    }

    fn pull(&mut self, mut prepared: Prepared) {
        let mut document = self.spoke.document.clone();
        let misses = prepared.changes.iter().any(|change| {
            let misses = matches!(change, Told::Delta { .. }) && document.is_none();
            change.apply(&mut document);
            misses
        });
        if misses {
            self.read_at_hub(&mut prepared);
        }
        if let Some(Told::Unclear { set: order, .. }) = prepared.changes.pop_if(|c| matches!(c, Told::Unclear { .. })) {
            let mut document = self.spoke.document.clone();
            prepared.changes.iter().for_each(|change| change.apply(&mut document));
            prepared.changes.extend(document.map(|document| Told::Whole(reordered(document, &order))));
        }
        let time = self.spoke.commit(&prepared.changes, true);
        self.down.next += prepared.events;
        self.down.position = self.hub.log[self.down.next - 1].time;
        let reads = prepared.read.map(|read| ("DFW", at(read)));
        self.down.saved_bounds = self.down.ahead.bounds(reads.into_iter());
        if let Some(read) = prepared.read {
            self.down.ahead.has_read(key(), ["DFW"].into_iter(), at(read));
        }
        if let Some(fields) = prepared.edits {
            self.next_note += 1;
            self.notes.push((self.next_note, fields.clone()));
            self.conflicts.record(key(), fields, at(time));
            self.conflicts.record_note(self.next_note, at(time));
        }
        self.down.ahead.advance(at(self.down.position));
        if let Some(deletable) = self.conflicts.downlink_passed(at(self.down.position)) {
            self.notes.retain(|(number, _)| *number > deletable);
        }
    }

    /// Restarts the reader, the writer, or both from the saved state.
    fn restart(&mut self) {
        let which = self.rng.random_range(0..3);
        if which != 0 {
            self.up.prepared = None;
            self.up.ahead = Ahead::new(self.up.saved_bounds.clone(), 9);
            self.last_push = self.hub.time;
        }
        if which == 2 {
            self.conflicts = Conflicts::new(9);
        }
        if which != 1 {
            self.down.prepared = None;
            self.down.ahead = Ahead::new(self.down.saved_bounds.clone(), 9);
            self.conflicts.restart();
            if self.rule == Rule::ForgetOnRestart {
                self.notes.clear();
            }
            for (number, fields) in &self.notes {
                self.conflicts.record(key(), fields.clone(), at(self.spoke.time));
                self.conflicts.record_note(*number, at(self.spoke.time));
            }
        }
    }
}

fn united(edits: Option<Fields>, more: Fields) -> Option<Fields> {
    Some(match edits {
        Some(edits) => edits.union(more),
        None => more,
    })
}

/// Sorts the fields of the document by `order`. Fields unknown to `order` come last.
fn reordered(document: Vec<(u8, u32)>, order: &[(u8, u32)]) -> Vec<(u8, u32)> {
    let place = |name: u8| order.iter().position(|(known, _)| *known == name).unwrap_or(usize::MAX);
    let mut document = document;
    document.sort_by_key(|(name, _)| place(*name));
    document
}

fn diverging(rule: Rule, interleavings: u64) -> Vec<u64> {
    (0..interleavings).filter(|&seed| !Model::new(seed, rule, true).converges()).collect()
}

#[test]
fn every_interleaving_of_concurrent_edits_converges() {
    let diverging = diverging(Rule::Real, INTERLEAVINGS);
    assert!(
        diverging.is_empty(),
        "{} of {INTERLEAVINGS} diverge, the first with seed {}",
        diverging.len(),
        diverging[0]
    );
}

#[test]
fn a_weaker_rule_diverges() {
    let weaker = [
        Rule::NeverRefresh,
        Rule::RefreshUntilPushed,
        Rule::NeverReorder,
        Rule::ForgetOnRestart,
        Rule::BatchesForgetThemselves,
    ];
    for rule in weaker {
        assert!(!diverging(rule, INTERLEAVINGS).is_empty(), "{rule:?} converges as well");
    }
}

/// Runs the model with an application at the spoke only, and returns the final state.
fn run_without_hub_edits(seed: u64, rule: Rule) -> Model {
    let mut model = Model::new(seed, rule, false);
    for _ in 0..60 {
        match model.rng.random_range(0..8) {
            0..3 => model.application(true),
            3..5 => model.uplink(),
            5..7 => model.downlink(),
            _ => model.restart(),
        }
    }
    model
}

/// True if the hub's versions of the document are a subsequence of the spoke's versions.
fn hub_follows_the_spoke(model: &Model) -> bool {
    let mut spoke = model.spoke.versions.iter();
    model.hub.versions.iter().all(|version| spoke.any(|known| known == version))
}

#[test]
fn without_hub_edits_no_link_writes_at_the_spoke() {
    for seed in 0..INTERLEAVINGS {
        let model = run_without_hub_edits(seed, Rule::Real);
        assert!(model.spoke.log.iter().all(|event| !event.tagged), "seed {seed}");
    }
}

#[test]
fn the_hubs_document_never_goes_back_in_time() {
    for seed in 0..INTERLEAVINGS {
        assert!(hub_follows_the_spoke(&run_without_hub_edits(seed, Rule::Real)), "seed {seed}");
    }
    let weaker =
        (0..INTERLEAVINGS).filter(|&seed| !hub_follows_the_spoke(&run_without_hub_edits(seed, Rule::ReplayOverReads)));
    assert!(weaker.count() > 0, "the model cannot tell");
}
