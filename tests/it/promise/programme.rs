//! A programme: what applications, operators and faults will do, made from a seed before anything runs.

use std::collections::BTreeSet;
use std::fmt;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::support::site::{HUB, Topology};

/// Zones held by several spokes, and a zone without an owner.
pub const SPOKES: Topology<'static> = &[("DFW", &["HOU", "yard"]), ("HOU", &["DFW"]), ("BOS", &["DFW"])];

pub const SITES: [&str; 4] = [HUB, "DFW", "HOU", "BOS"];
const ZONES: [&str; 4] = ["DFW", "HOU", "BOS", "yard"];

/// Documents of a programme: few, so that several applications meet in each, and each has a short history.
const DOCUMENTS: u8 = 40;

/// Milliseconds for which a phase writes.
pub const PHASE: u64 = 5_000;

/// One change of one document. Every change carries a value that no other change carries.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// In this zone; `None`: without a partition key.
    Insert(Option<&'static str>),
    Replace(Target),
    /// A top-level field, by `$set`.
    Set(&'static str),
    /// A nested field, by `$set`.
    SetNested(&'static str),
    /// By a pipeline, which also puts the fields into another order.
    Pipeline,
    Push,
    Move(&'static str),
    /// Takes the partition key away.
    Unset,
    /// Gives a document without a key the site's own zone.
    Stamp,
    /// Takes a value of a unique index.
    Claim(i32),
    Delete,
}

/// The zone of a document after a replace.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Same,
    Zone(&'static str),
    None,
}

/// Changes by one application, one immediately after the other.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Milliseconds from the beginning of the phase.
    pub at: u64,
    pub site: &'static str,
    /// Each with its document, and the number of its value.
    pub changes: Vec<(u8, Change, u32)>,
    pub in_transaction: bool,
}

#[derive(Clone, Debug)]
pub enum Act {
    KillProgram,
    /// The program stands still for these milliseconds, so that many changes come in one batch.
    FreezeProgram(u64),
    FreezeServer(&'static str, u64),
    /// The wire between the program and a spoke is cut for these milliseconds.
    Cut(&'static str, u64),
    StepDown(&'static str),
    /// The next transactions at the server conflict.
    Conflict(&'static str, i32),
    /// Commands of the program take this many milliseconds at the server.
    Slow(&'static str, u64),
    LoseHistory(&'static str),
    /// The synced collection at a spoke is dropped, and created again.
    DropCollection(&'static str),
    /// A server gets back the disk that it had at the beginning of the phase.
    Restore(&'static str),
    /// A spoke's server loses its disk, and is set up again.
    Wipe(&'static str),
    Watch(&'static str, Vec<&'static str>, &'static str),
    Pause(&'static str, u64),
    Post(&'static str, &'static str),
    RetryLetters(&'static str),
    DropLetters(&'static str),
    Repair,
}

#[derive(Clone, Debug)]
pub struct Phase {
    pub writes: Vec<Planned>,
    /// With the milliseconds from the beginning of the phase.
    pub acts: Vec<(u64, Act)>,
}

#[derive(Clone, Debug)]
pub struct Programme {
    pub phases: Vec<Phase>,
}

impl Programme {
    /// A programme of this number of phases. Everything is at rest between two phases.
    pub fn new(seed: u64, phases: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut values = 0;
        Self { phases: (0..phases).map(|_| phase(&mut random, &mut values)).collect() }
    }

    /// The same without everything that concerns other documents.
    pub fn only(&self, documents: &BTreeSet<u8>) -> Self {
        let mut shorter = self.clone();
        for phase in &mut shorter.phases {
            for planned in &mut phase.writes {
                planned.changes.retain(|(document, ..)| documents.contains(document));
            }
            phase.writes.retain(|planned| !planned.changes.is_empty());
        }
        shorter
    }

    /// The same without the act of this number, counted through all phases; `None` without such an act.
    pub fn without_act(&self, number: usize) -> Option<Self> {
        let mut shorter = self.clone();
        let mut left = number;
        for phase in &mut shorter.phases {
            if left < phase.acts.len() {
                phase.acts.remove(left);
                return Some(shorter);
            }
            left -= phase.acts.len();
        }
        None
    }
}

fn phase(random: &mut StdRng, values: &mut u32) -> Phase {
    let (mut writes, mut acts, mut at) = (Vec::new(), Vec::new(), 0);
    while at < PHASE {
        // Several applications change one document within a moment.
        let document = random.random_range(0..DOCUMENTS);
        for _ in 0..random.random_range(1..5) {
            let at = at + random.random_range(0..60);
            writes.push(planned(random, values, at, document));
        }
        at += random.random_range(10..120);
    }
    writes.sort_by_key(|planned| planned.at);
    for _ in 0..random.random_range(1..5) {
        acts.push((random.random_range(0..PHASE), act(random)));
    }
    acts.sort_by_key(|(at, _)| *at);
    Phase { writes, acts }
}

fn planned(random: &mut StdRng, values: &mut u32, at: u64, document: u8) -> Planned {
    let site = *SITES.choose(random).expect("there are some");
    let in_transaction = random.random_ratio(1, 6);
    let number = if random.random_ratio(1, 3) { random.random_range(2..4) } else { 1 };
    let changes = (0..number).map(|_| {
        let document =
            if in_transaction && random.random_ratio(1, 2) { random.random_range(0..DOCUMENTS) } else { document };
        *values += 1;
        (document, change(random, site), *values)
    });
    Planned { at, site, changes: changes.collect(), in_transaction }
}

fn change(random: &mut StdRng, site: &str) -> Change {
    let zone = |random: &mut StdRng| *ZONES.choose(random).expect("there are some");
    let own = ZONES.into_iter().find(|zone| *zone == site);
    match random.random_range(0..34) {
        0..8 => Change::Insert(match (own, random.random_range(0..10)) {
            (_, 0) => None,
            (Some(own), 1..9) => Some(own),
            _ => Some(zone(random)),
        }),
        8..10 => Change::Replace(Target::Same),
        10 => Change::Replace(Target::Zone(zone(random))),
        11 => Change::Replace(Target::None),
        12..16 => Change::Set(["a", "b"].choose(random).expect("there are some")),
        16..20 => Change::SetNested(["n.x", "n.y"].choose(random).expect("there are some")),
        20..22 => Change::Pipeline,
        22 => Change::Push,
        23..27 => Change::Move(zone(random)),
        27 => Change::Unset,
        28 => Change::Stamp,
        29..31 => Change::Claim(random.random_range(1..5)),
        _ => Change::Delete,
    }
}

fn act(random: &mut StdRng) -> Act {
    let site = *SITES.choose(random).expect("there are some");
    let spoke = *SITES[1..].choose(random).expect("there are some");
    let moment = random.random_range(100..1_500);
    match random.random_range(0..30) {
        0..3 => Act::KillProgram,
        3..7 => Act::FreezeProgram(moment),
        7 => Act::FreezeServer(site, moment),
        8..10 => Act::Cut(spoke, moment),
        10 => Act::StepDown(site),
        11..13 => Act::Conflict(site, random.random_range(1..6)),
        13 => Act::Slow(site, moment / 3),
        14..16 => Act::LoseHistory(site),
        16..18 => {
            let others: Vec<&str> = ZONES.into_iter().filter(|zone| *zone != spoke).collect();
            let number = random.random_range(0..=others.len());
            let watch = others.choose_multiple(random, number).copied().collect();
            Act::Watch(spoke, watch, ["keep", "purge"].choose(random).expect("there are some"))
        }
        18 => Act::Pause(spoke, moment),
        19..22 => Act::Post(spoke, "resync"),
        22 => Act::Post(spoke, "restart"),
        23 => Act::RetryLetters(spoke),
        24 => Act::DropLetters(spoke),
        25..27 => Act::DropCollection(spoke),
        27 => Act::Restore(site),
        28 => Act::Wipe(spoke),
        _ => Act::Repair,
    }
}

/// The `_id` of a document.
pub fn id(document: u8) -> String {
    format!("d{document:02}")
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
