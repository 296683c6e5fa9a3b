//! Whatever a server can hold passes, or becomes a dead letter: random documents as bytes, valid to the server and
//! often unreadable to a driver, at every place where a link meets one.

use std::collections::{BTreeMap, HashSet};

use bson::spec::BinarySubtype;
use bson::{RawDocumentBuf, doc, rawdoc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::bytes::element;
use super::support::site::{HUB, TRIANGLE};
use super::support::{Site, eventually};

/// Documents of one run. `SPOKESYNC_ANYTHING` gives another number.
const DOCUMENTS: usize = 1_500;

/// Elements of BSON as bytes.
struct Maker {
    random: StdRng,
    number: u32,
    /// Names that the present document has; `None`: it may have a name twice.
    names: Option<HashSet<Vec<u8>>>,
}

fn framed(elements: &[u8]) -> Vec<u8> {
    let length = i32::try_from(elements.len() + 5).unwrap();
    [&length.to_le_bytes()[..], elements, b"\0"].concat()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), number: 0, names: None }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.random.random_range(0..=most);
        (0..length).map(|_| self.random.random()).collect()
    }

    /// A text: of letters, of any UTF-8, or no UTF-8 at all.
    fn text(&mut self) -> Vec<u8> {
        match self.random.random_range(0..4) {
            0 => self.bytes(12),
            1 => "späte 🚂\0Züge".as_bytes().to_vec(),
            2 => vec![b'x'; self.random.random_range(0..300)],
            _ => format!("text {}", self.random.random::<u8>()).into_bytes(),
        }
    }

    /// A new name, if the document must not have one twice.
    fn name(&mut self) -> Vec<u8> {
        loop {
            let name = self.any_name();
            let is_new = self.names.as_mut().is_none_or(|names| names.insert(name.clone()));
            if is_new {
                return name;
            }
        }
    }

    fn any_name(&mut self) -> Vec<u8> {
        let name = match self.random.random_range(0..9) {
            0 => Vec::new(),
            1 => b"a.b".to_vec(),
            2 => b"$x".to_vec(),
            3 => self.bytes(6),
            4 => b"0".to_vec(),
            5 => "Straße".as_bytes().to_vec(),
            // Often the same one, also twice in a document.
            _ => vec![b'a' + self.random.random_range(0..6)],
        };
        name.into_iter().filter(|byte| *byte != 0).collect()
    }

    /// A string as it stands in a value: with its length and a final zero.
    fn string(&mut self) -> Vec<u8> {
        let mut text = self.text();
        text.push(0);
        sized(&text)
    }

    fn array(&mut self, depth: usize) -> Vec<u8> {
        let length = self.random.random_range(0..4);
        let elements: Vec<u8> = (0..length)
            .flat_map(|index: usize| {
                let (kind, value) = self.value(depth + 1);
                element(kind, index.to_string().as_bytes(), &value)
            })
            .collect();
        framed(&elements)
    }

    fn document(&mut self, depth: usize) -> Vec<u8> {
        let length = self.random.random_range(0..4);
        let elements: Vec<u8> = (0..length)
            .flat_map(|_| {
                let (name, (kind, value)) = (self.name(), self.value(depth + 1));
                element(kind, &name, &value)
            })
            .collect();
        framed(&elements)
    }

    /// A value of any type, with its type.
    fn value(&mut self, depth: usize) -> (u8, Vec<u8>) {
        let leaf = depth > 4;
        loop {
            let kind = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 255, 127]
                [self.random.random_range(0..21)];
            let value = match kind {
                1 | 9 | 17 | 18 => self.random.random::<[u8; 8]>().to_vec(),
                2 | 13 | 14 => self.string(),
                3 if !leaf => self.document(depth),
                4 if !leaf => self.array(depth),
                5 => self.binary(),
                6 | 10 | 127 | 255 => Vec::new(),
                7 => self.random.random::<[u8; 12]>().to_vec(),
                8 => vec![self.random.random_range(0..2)],
                11 => b"^a.*\0im\0".to_vec(),
                12 => [self.string(), self.random.random::<[u8; 12]>().to_vec()].concat(),
                15 if !leaf => {
                    let inner = [self.string(), self.document(depth)].concat();
                    [&i32::try_from(inner.len() + 4).unwrap().to_le_bytes()[..], &inner].concat()
                }
                16 => self.random.random_range(-3..4_i32).to_le_bytes().to_vec(),
                19 => self.random.random::<[u8; 16]>().to_vec(),
                _ => continue,
            };
            return (kind, value);
        }
    }

    fn binary(&mut self) -> Vec<u8> {
        let subtype: u8 = [0, 1, 2, 3, 4, 5, 6, 128, 129, 255][self.random.random_range(0..10)];
        let mut bytes = self.bytes(20);
        // An old binary has an inner length, which may be wrong.
        if subtype == u8::from(BinarySubtype::BinaryOld) && self.random.random_bool(0.7) {
            bytes = sized(&bytes);
        }
        [&i32::try_from(bytes.len()).unwrap().to_le_bytes()[..], &[subtype], &bytes].concat()
    }

    /// An `_id`: mostly a plain one, which others of the run do not have.
    fn id(&mut self) -> Vec<u8> {
        self.number += 1;
        let number = format!("{:06}", self.number).into_bytes();
        match self.random.random_range(0..10) {
            0 => element(2, b"_id", &sized(&[&number, &self.text()[..], b"\0"].concat())),
            1 => {
                let inner = [element(2, b"n", &sized(&[&number[..], b"\0"].concat())), {
                    let (name, (kind, value)) = (self.name(), self.value(3));
                    element(kind, &name, &value)
                }];
                element(3, b"_id", &framed(&inner.concat()))
            }
            2 => {
                let (kind, value) = self.value(3);
                element(kind, b"_id", &value)
            }
            _ => element(2, b"_id", &sized(&[&number[..], b"\0"].concat())),
        }
    }

    /// The elements of a document after its `_id` and partition key. `twice`: a name may stand there twice.
    fn content(&mut self, twice: bool) -> Vec<u8> {
        self.names = (!twice).then(HashSet::new);
        let length = self.random.random_range(0..5);
        (0..length)
            .flat_map(|_| {
                let (name, (kind, value)) = (self.name(), self.value(0));
                element(kind, &name, &value)
            })
            .collect()
    }
}

fn raw(elements: &[u8]) -> RawDocumentBuf {
    RawDocumentBuf::from_bytes(framed(elements)).unwrap()
}

fn zone(name: &str) -> Vec<u8> {
    element(2, b"_pk", &sized(&[name.as_bytes(), b"\0"].concat()))
}

/// Runs a command on the collection. False if the server refuses the command or the document.
async fn run(site: &Site, name: &str, command: RawDocumentBuf) -> bool {
    let database = site.at(name).namespace().db;
    let Ok(reply) = site.client(name).database(&database).run_raw_command(command).await else { return false };
    !reply.contains_key("writeErrors")
}

async fn insert(site: &Site, name: &str, document: &[u8]) -> bool {
    let collection = site.at(name).name().to_owned();
    run(site, name, rawdoc! { "insert": collection, "documents": [raw(document)] }).await
}

/// Canaries from everywhere to everywhere.
async fn all_links_flow(site: &Site, round: usize) {
    for zone in ["DFW", "HOU", "BOS"] {
        let (up, down) = (format!("up {zone} {round}"), format!("down {zone} {round}"));
        site.at(zone).insert_one(doc! { "_id": &up, "_pk": zone }).await.unwrap();
        site.at(HUB).insert_one(doc! { "_id": &down, "_pk": zone }).await.unwrap();
    }
    for zone in ["DFW", "HOU", "BOS"] {
        for (name, id) in [(HUB, format!("up {zone} {round}")), (zone, format!("down {zone} {round}"))] {
            eventually(&format!("{id} arrives"), async || {
                site.at(name).find_one(doc! { "_id": &id }).await.is_ok_and(|found| found.is_some())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_can_hold_passes_or_becomes_a_dead_letter_and_holds_up_nobody() {
    let seed = std::env::var("SPOKESYNC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_127);
    let documents = std::env::var("SPOKESYNC_ANYTHING").ok().and_then(|most| most.parse().ok()).unwrap_or(DOCUMENTS);
    let (mut site, mut maker) = (Site::shared(TRIANGLE).await, Maker::new(seed));
    let places =
        [("DFW", "DFW"), ("HOU", "HOU"), ("BOS", "BOS"), (HUB, "DFW"), (HUB, "HOU"), (HUB, "BOS"), ("DFW", "HOU")];
    let mut stored: Vec<(&str, Vec<u8>, &str, bool)> = Vec::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..5 {
        // The first ones are there before the first start: a copy meets them.
        if round == 1 {
            site.start().await;
        }
        for _ in 0..documents / 5 {
            let (name, own) = places[maker.random.random_range(0..places.len())];
            let id = maker.id();
            // Of a document that has a name twice, some updates end the server (6.0.5).
            let twice = maker.random.random_bool(0.2);
            let content = maker.content(twice);
            // Sometimes without a partition key, which the spoke's link adds.
            let key = if maker.random.random_bool(0.1) { Vec::new() } else { zone(own) };
            if insert(&site, name, &[id.clone(), key, content].concat()).await {
                *kinds.entry("inserted").or_default() += 1;
                stored.push((name, id, own, twice));
            }
            // Then a change of an earlier one.
            let Some((name, id, own, twice)) = stored.get(maker.random.random_range(0..stored.len().max(1))).cloned()
            else {
                continue;
            };
            let collection = site.at(name).name().to_owned();
            let (query, content) = (raw(&id), maker.content(twice));
            let (kind, update) = match maker.random.random_range(0..if twice { 3 } else { 6 }) {
                0 => {
                    let deletes = rawdoc! { "q": query, "limit": 1 };
                    ("deleted", rawdoc! { "delete": collection, "deletes": [deletes] })
                }
                1 | 2 => {
                    let whole = raw(&[id, zone(own), content].concat());
                    ("replaced", rawdoc! { "update": collection, "updates": [{ "q": query, "u": whole }] })
                }
                3 => {
                    maker.names = Some(HashSet::new());
                    let (field, (kind, value)) = (maker.name(), maker.value(0));
                    let set = raw(&element(kind, &field, &value));
                    ("set", rawdoc! { "update": collection, "updates": [{ "q": query, "u": { "$set": set } }] })
                }
                4 => {
                    let (kind, value) = maker.value(1);
                    let set = raw(&element(kind, b"a.b", &value));
                    ("set below", rawdoc! { "update": collection, "updates": [{ "q": query, "u": { "$set": set } }] })
                }
                _ => {
                    let literal = raw(&[zone(own), content].concat());
                    let stage =
                        rawdoc! { "$replaceWith": { "$mergeObjects": [{ "_id": "$_id" }, { "$literal": literal }] } };
                    ("by a pipeline", rawdoc! { "update": collection, "updates": [{ "q": query, "u": [stage] }] })
                }
            };
            if run(&site, name, update).await {
                *kinds.entry(kind).or_default() += 1;
            }
        }
        if round > 0 {
            all_links_flow(&site, round).await;
        }
    }
    // Comparisons meet everything once more.
    for zone in ["DFW", "HOU", "BOS"] {
        assert!(site.command(&["resync", zone, "--wait"]).0, "{zone}");
    }
    all_links_flow(&site, 9).await;
    let (_, told) = site.command_code(&["verify", "--json"]);
    let log = site.log();
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("failed, starting again")).collect();
    assert!(failed.is_empty(), "seed {seed}: {failed:#?}");
    let told: serde_json::Value = serde_json::from_str(&told).expect("a report");
    // A difference has a dead letter, or is another zone's document that an application wrote at a spoke.
    let differing = told["findings"].as_array().expect("findings").iter();
    let unknown: Vec<_> = differing.filter(|one| one["kind"] != "parked" && one["kind"] != "foreign").collect();
    assert!(unknown.is_empty(), "seed {seed}: {unknown:#?}");
    for kind in ["inserted", "deleted", "replaced", "set", "set below", "by a pipeline"] {
        assert!(kinds.get(kind).is_some_and(|number| *number > documents / 100), "{kinds:?}");
    }
    println!("{kinds:?}");
}
