//! Traces of the model, for the test that replays them on real servers with the real program.
//!
//! A trace begins with one document that all sides agree about, or with none. Applications write at the hub and at both
//! spokes while nothing is carried. Then the links carry everything, in an order that nobody determines. The trace
//! names every end of the model: the documents, and the dead letters.

use std::collections::BTreeSet;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{Action, Held, Logged, Model, Rule, SPOKES, Write, ZONES, at};

/// The traces that are exported.
const TRACES: u64 = 400;

/// Orders in which the links carry the writes of one trace.
const ORDERS: u64 = 400;

const FILE: &str = "tests/fixtures/crossings.json";

impl Model {
    /// The beginning of a trace: all sides have the document of one zone, or none, and nothing is under way.
    fn agreed(seed: u64) -> Self {
        let mut model = Self::new(seed, Rule::Real);
        let zone = model.random.random_range(0..=ZONES.len());
        if zone < ZONES.len() {
            let document = Held { zone, lineage: 0, value: 0 };
            model.writes.insert(0, Write { lineage: 0, zone, saw: None });
            model.hub.document = Some(document);
            for spoke in SPOKES {
                let is_held = model.routes.held(spoke).any(|held| held.as_str() == ZONES[zone]);
                model.spokes[spoke].side.document = Some(document).filter(|_| is_held);
            }
        }
        model
    }

    /// Lets every application write up to three times.
    fn write(&mut self) {
        for site in [None, Some(0), Some(1)] {
            for _ in 0..self.random.random_range(0..4) {
                self.application(site);
            }
        }
    }

    /// Carries everything, in this order.
    fn carry(&mut self, order: u64) {
        self.random = StdRng::seed_from_u64(order);
        for _ in 0..self.random.random_range(0..30) {
            let (spoke, stage) = (self.random.random_range(0..2), self.random.random_range(0..3));
            // A real batch carries one event or many.
            let events = self.random.random_range(1..8);
            if stage == 1 && self.random.random() {
                self.pass_over(spoke, events);
            }
            for _ in 0..events {
                match stage {
                    0 => self.uplink(spoke),
                    1 => self.downlink(spoke),
                    _ => self.settle(spoke),
                }
            }
        }
        self.come_to_rest();
    }

    /// Passes over the events of a batch that a later one stands for: an insert, a move or a delete, but no change of
    /// single fields.
    fn pass_over(&mut self, number: usize, events: usize) {
        let mut batch = self.hub.log.iter().enumerate().skip(self.spokes[number].down).take(events);
        let zone = |document: Option<Held>| document.map(|document| document.zone);
        let stands_for_earlier = |event: Logged| {
            let action = self.action(number, event);
            zone(event.before) != zone(event.after) && matches!(action, Some(Action::Apply(..) | Action::Delete(_)))
        };
        if let Some((index, _)) = batch.rfind(|(_, event)| stands_for_earlier(**event)) {
            let spoke = &mut self.spokes[number];
            spoke.down = index;
            spoke.conflicts.downlink_passed(at(index));
        }
    }

    fn shown(&self) -> Value {
        let shown = |document: Option<Held>| document.map(|document| json!([ZONES[document.zone], document.value]));
        let letters: BTreeSet<String> = SPOKES
            .into_iter()
            .flat_map(|spoke| {
                let (zone, there) = (ZONES[spoke], &self.spokes[spoke]);
                let up = there.letter.is_some().then(|| format!("uplink:{zone}"));
                up.into_iter().chain(there.collision.then(|| format!("downlink:{zone}")))
            })
            .collect();
        let [first, second] = SPOKES.map(|spoke| shown(self.spokes[spoke].side.document));
        json!({ "hub": shown(self.hub.document), ZONES[0]: first, ZONES[1]: second, "letters": letters })
    }

    fn trace(seed: u64) -> Value {
        let mut model = Self::agreed(seed);
        let begin = model.hub.document.map(|document| ZONES[document.zone]);
        model.write();
        let writes = |log: &[Logged]| {
            log.iter().map(|write| write.after.map(|after| json!([ZONES[after.zone], after.value]))).collect::<Vec<_>>()
        };
        let [first, second] = SPOKES.map(|spoke| writes(&model.spokes[spoke].side.log));
        let writes = json!({ "hub": writes(&model.hub.log), ZONES[0]: first, ZONES[1]: second });
        let ends: BTreeSet<String> = (0..ORDERS)
            .filter_map(|order| {
                let mut model = Self::agreed(seed);
                model.write();
                model.carry(order);
                // The later event does not stand for an earlier delete in another zone: no end of the program.
                model.broken().is_none().then(|| model.shown().to_string())
            })
            .collect();
        let ends: Vec<Value> = ends.iter().map(|end| serde_json::from_str(end).expect("JSON")).collect();
        json!({ "begin": begin, "writes": writes, "ends": ends })
    }
}

/// `UPDATE_FIXTURES=1` writes the file anew after a change of the rules or of the model.
#[test]
fn the_exported_traces_are_those_of_the_model() {
    let lines: Vec<String> = (0..TRACES).map(|seed| Model::trace(seed).to_string()).collect();
    let traces = format!("[\n{}\n]\n", lines.join(",\n"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&file, &traces).expect("the fixture is written");
    }
    let saved = std::fs::read_to_string(&file).expect("the fixture is there");
    for (saved, made) in saved.lines().zip(traces.lines()) {
        assert_eq!(saved, made, "UPDATE_FIXTURES=1 writes the traces anew");
    }
    assert_eq!(saved.len(), traces.len());
}
