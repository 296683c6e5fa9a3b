//! The program reads the metadata that an earlier version saved, and copies nothing again.
//!
//! `tests/fixtures/0.1.0` holds the documents and the metadata of a site whose spokesync was killed. Each test loads
//! them into fresh servers. Only what belongs to a server itself is replaced: places in change streams, cluster times,
//! and collection UUIDs. All dates move by the age of the fixture, so that nothing in it expires.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bson::{Bson, DateTime, Document, RawDocumentBuf, Timestamp, doc};
use futures_util::TryStreamExt;
use mongodb::IndexModel;
use mongodb::options::IndexOptions;
use serde_json::{Value, json};
use spokesync::rules::position::Position;

use super::support::events::Events;
use super::support::site::{HUB, TRIANGLE, Topology};
use super::support::{Site, eventually};

/// The synced collection in the fixture.
const NAMESPACE: &str = "messages.messages";

/// The exit code of `spokesync verify` for documents that differ.
const DIFFERENT: i32 = 3;

/// All collections that the program keeps.
const OWN_COLLECTIONS: [&str; 8] =
    ["checkpoints", "sessions", "dead_letters", "hub_edits", "foreign", "set_aside", "ticks", "verifications"];

/// The servers of the fixture.
const NAMES: [&str; 5] = [HUB, "DFW", "HOU", "BOS", "AUS"];

/// [`TRIANGLE`] with AUS, which 0.1.0 left in the middle of a reconcile.
const WITH_AUS: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &["DFW"]), ("BOS", &[]), ("AUS", &["BOS"])];

/// The documents of a collection of the fixture.
fn fixture(name: &str, collection: &str) -> Vec<Document> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/0.1.0").join(name);
    assert!(folder.is_dir(), "{}", folder.display());
    let path = folder.join(format!("{collection}.jsonl"));
    let text = if path.exists() { std::fs::read_to_string(path).unwrap() } else { String::new() };
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The newest date in the metadata of the fixture.
fn killed_at() -> DateTime {
    fn newest(value: &Bson) -> Option<DateTime> {
        match value {
            Bson::DateTime(date) => Some(*date),
            Bson::Document(document) => document.values().filter_map(newest).max(),
            Bson::Array(array) => array.iter().filter_map(newest).max(),
            _ => None,
        }
    }
    let all = NAMES.iter().flat_map(|name| OWN_COLLECTIONS.iter().flat_map(|collection| fixture(name, collection)));
    all.filter_map(|document| newest(&document.into())).max().unwrap()
}

/// What a server decides by itself, and checkpoints repeat.
struct Server {
    uuid: Bson,
    /// The end of its change stream.
    token: Document,
    time: Timestamp,
}

impl Server {
    async fn of(site: &Site, name: &str) -> Self {
        let collection = site.at(name);
        let list = doc! { "listCollections": 1, "filter": { "name": collection.name() } };
        let database = site.client(name).database(&collection.namespace().db);
        let listed = database.run_command(list).await.unwrap();
        let listed = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap()[0].as_document().unwrap();
        let uuid = listed.get_document("info").unwrap().get("uuid").unwrap().clone();
        // Nobody changes this collection meanwhile, unlike those of other sites on the same server.
        let stream = collection.watch().await.unwrap();
        let token = stream.resume_token().expect("an empty reply has a token");
        let token = bson::serialize_to_document(&token).unwrap();
        let time = Position::from_token(&RawDocumentBuf::try_from(&token).unwrap()).unwrap().cluster_time();
        Self { uuid, token, time }
    }
}

/// Puts the documents of the fixture into the servers of the site.
async fn load_documents(site: &Site, topology: Topology<'_>) {
    let refuses = IndexOptions::builder().unique(true).partial_filter_expression(doc! { "key": { "$exists": true } });
    let index = IndexModel::builder().keys(doc! { "key": 1 }).options(refuses.build()).build();
    site.at(HUB).create_index(index).await.unwrap();
    for name in names(topology) {
        site.at(name).insert_many(fixture(name, "messages")).await.unwrap();
    }
}

/// Puts the metadata of the fixture into the servers of the site, whose change streams are to be read from now on.
/// Returns the checkpoints of all links, as they are put in.
async fn load_metadata(site: &Site, servers: &BTreeMap<&str, Server>) -> BTreeMap<String, Document> {
    let age = DateTime::now().timestamp_millis() - killed_at().timestamp_millis();
    let mut checkpoints = BTreeMap::new();
    for name in servers.keys() {
        for collection in OWN_COLLECTIONS {
            let mut documents = fixture(name, collection);
            for document in &mut documents {
                document.iter_mut().for_each(|(_, value)| adapt(value, age, &site.namespaces[0]));
                if collection == "checkpoints" && belongs(document, servers) {
                    adapt_checkpoint(document, servers);
                    checkpoints.insert(document.get_str("_id").unwrap().to_owned(), document.clone());
                }
            }
            if !documents.is_empty() {
                site.own_collection(name, collection).insert_many(documents).await.unwrap();
            }
        }
    }
    checkpoints
}

fn adapt(value: &mut Bson, age: i64, namespace: &str) {
    match value {
        Bson::DateTime(date) => *date = DateTime::from_millis(date.timestamp_millis() + age),
        Bson::String(text) if text == NAMESPACE => namespace.clone_into(text),
        Bson::Document(document) => document.iter_mut().for_each(|(_, value)| adapt(value, age, namespace)),
        Bson::Array(array) => array.iter_mut().for_each(|value| adapt(value, age, namespace)),
        _ => {}
    }
}

/// Whether the link is one between servers of the site.
fn belongs(checkpoint: &Document, servers: &BTreeMap<&str, Server>) -> bool {
    servers.contains_key(checkpoint.get_str("zone").unwrap())
}

fn adapt_checkpoint(checkpoint: &mut Document, servers: &BTreeMap<&str, Server>) {
    let (direction, zone) = checkpoint.get_str("_id").unwrap().split_once(':').unwrap();
    let (hub, spoke) = (&servers[HUB], &servers[zone]);
    let (source, destination) = if direction == "uplink" { (spoke, hub) } else { (hub, spoke) };
    *checkpoint.get_document_mut("token").unwrap() = source.token.clone();
    *checkpoint.get_mut("cluster_time").unwrap() = source.time.into();
    let mut replace = |list: &str, field: &str, value: Bson| {
        for item in checkpoint.get_array_mut(list).unwrap() {
            *item.as_document_mut().unwrap().get_mut(field).unwrap() = value.clone();
        }
    };
    replace("ahead", "until", source.time.into());
    replace("collections", "uuid", source.uuid.clone());
    replace("destination_collections", "uuid", destination.uuid.clone());
}

fn names(topology: Topology<'_>) -> Vec<&'static str> {
    let is_there = |name: &&str| *name == HUB || topology.iter().any(|(zone, _)| zone == name);
    NAMES.into_iter().filter(is_there).collect()
}

async fn servers(site: &Site, topology: Topology<'_>) -> BTreeMap<&'static str, Server> {
    let mut servers = BTreeMap::new();
    for name in names(topology) {
        servers.insert(name, Server::of(site, name).await);
    }
    servers
}

/// A site as 0.1.0 left it, and the checkpoints of its links.
async fn left_by_0_1_0(topology: Topology<'_>) -> (Site, BTreeMap<String, Document>) {
    let site = Site::shared(topology).await;
    load_documents(&site, topology).await;
    let checkpoints = load_metadata(&site, &servers(&site, topology).await).await;
    (site, checkpoints)
}

async fn checkpoint(site: &Site, link: &str) -> Document {
    let (direction, zone) = link.split_once(':').unwrap();
    let name = if direction == "uplink" { HUB } else { zone };
    site.own_collection(name, "checkpoints").find_one(doc! { "_id": link }).await.unwrap().unwrap()
}

async fn saved(site: &Site, name: &str, collection: &str) -> Vec<Document> {
    let found = site.own_collection(name, collection).find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
    found.try_collect().await.unwrap()
}

/// The documents that hub and spokes do not have alike, as `spoke _id`.
async fn differing(site: &Site, topology: Topology<'_>) -> BTreeSet<String> {
    let mut differing = BTreeSet::new();
    for (spoke, watched) in topology {
        for zone in std::iter::once(spoke).chain(*watched) {
            let (hub, there) = (by_id(site, HUB, zone).await, by_id(site, spoke, zone).await);
            let ids: BTreeSet<_> = hub.keys().chain(there.keys()).collect();
            let other = ids.into_iter().filter(|id| hub.get(*id) != there.get(*id));
            differing.extend(other.map(|id| format!("{spoke} {id}")));
        }
    }
    differing
}

async fn by_id(site: &Site, name: &str, zone: &str) -> BTreeMap<String, Vec<u8>> {
    let documents = site.zone(name, 0, zone).await;
    let with_id = |document: RawDocumentBuf| {
        let id = Bson::try_from(document.get("_id").unwrap().unwrap()).unwrap();
        (id.as_str().map_or_else(|| id.to_string(), str::to_owned), document.into_bytes())
    };
    documents.into_iter().map(with_id).collect()
}

/// What the hub refused, and what an application wrote in a zone that is not its spoke's.
fn apart() -> BTreeSet<String> {
    ["DFW DFW refused", "DFW HOU foreign"].map(str::to_owned).into()
}

fn letters(site: &Site) -> Value {
    site.program.as_ref().unwrap().get("/api/v1/dead-letters").unwrap().1
}

async fn update(site: &Site, name: &str, id: &str, change: Document) {
    let done = site.at(name).update_one(doc! { "_id": id }, change).await.unwrap();
    assert_eq!(done.modified_count, 1, "{id} at {name}");
}

#[test]
fn the_fixture_of_0_1_0_holds_something_of_every_collection() {
    for collection in OWN_COLLECTIONS {
        assert!(NAMES.iter().any(|name| !fixture(name, collection).is_empty()), "{collection}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_0_1_0_is_read_and_nothing_is_copied_again() {
    let (mut site, loaded) = left_by_0_1_0(TRIANGLE).await;
    assert_eq!(loaded.len(), 2 * TRIANGLE.len());
    assert_eq!(differing(&site, TRIANGLE).await, apart());
    let mut events = Vec::new();
    for name in names(TRIANGLE) {
        events.push((name, Events::watch(site.at(name)).await));
    }
    let started = DateTime::now();
    site.start().await;
    site.settle().await;

    // Every link saves its checkpoint once when it begins, and again when it has been quiet for 5 s.
    for (link, loaded) in &loaded {
        let sequence = loaded.get_i64("seq").unwrap();
        eventually("every link has saved its checkpoint", async || {
            checkpoint(&site, link).await.get_i64("seq").unwrap() > sequence + 1
        })
        .await;
        let saved = checkpoint(&site, link).await;
        for field in ["copied", "left", "reconciling", "collections", "destination_collections"] {
            assert_eq!(saved.get(field), loaded.get(field), "{field} of {link}");
        }
        assert!(!saved.contains_key("copying"), "{link}: {saved}");
    }
    let log = site.log();
    for never in ["copying", "initial_sync", "reconciling"] {
        assert!(!log.contains(never), "{never}: {log}");
    }
    for spoke in site.status()["spokes"].as_array().unwrap() {
        for link in ["uplink", "downlink"] {
            assert_eq!(
                (&spoke[link]["state"], &spoke[link]["copying"]),
                (&json!("streaming"), &Value::Null),
                "{spoke}"
            );
            assert_eq!((&spoke[link]["restarts"], &spoke[link]["last_error"]), (&json!(0), &Value::Null), "{spoke}");
        }
    }

    // What was refused, what is foreign, and what was set aside.
    let letter = &letters(&site)[0];
    let told = |field: &str| letter[field].clone();
    assert_eq!((told("link"), told("zone"), told("id")), (json!("uplink"), json!("DFW"), json!("DFW refused")));
    assert_eq!((told("code"), told("later_changes")), (json!(11_000), json!(2)));
    assert_eq!(told("ns"), site.namespaces[0].as_str());
    assert!(told("reason").as_str().unwrap().contains("duplicate key"), "{letter}");
    assert_eq!(site.spoke_status("DFW")["dead_letters"], 1);
    let namespace = site.namespaces[0].as_str();
    let foreign: Vec<_> =
        saved(&site, "DFW", "foreign").await.into_iter().map(|saved| saved.get("_id").cloned()).collect();
    let registered = ["BOS foreign", "HOU foreign"].map(|id| Some(doc! { "ns": namespace, "document": id }.into()));
    assert_eq!(foreign, registered);
    let set_aside = saved(&site, "DFW", "set_aside").await;
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    assert_eq!(set_aside[0].get_document("document").unwrap(), &doc! { "_id": "HOU d", "_pk": "HOU", "n": 0 });
    // The program knows the sessions of its former self, and ends those that were in use.
    for name in names(TRIANGLE) {
        let registered = saved(&site, name, "sessions").await;
        for former in fixture(name, "sessions").iter().filter(|session| session.get_str("zone").unwrap() != "AUS") {
            let now = registered.iter().find(|session| session.get("_id") == former.get("_id")).unwrap();
            let ended = now.get_datetime("ended_at").unwrap();
            assert_eq!(*ended < started, former.contains_key("ended_at"), "{name}: {now}");
        }
    }
    for (name, events) in &mut events {
        let seen = events.so_far().await;
        assert!(seen.is_empty(), "{name}: {seen:#?}");
    }

    // New changes arrive on the other sides.
    site.at("DFW").insert_one(doc! { "_id": "DFW new", "_pk": "DFW", "n": 1 }).await.unwrap();
    site.at("DFW").delete_one(doc! { "_id": { "vehicle": "bus", "number": 12 } }).await.unwrap();
    site.at("HOU").insert_one(doc! { "_id": "HOU new", "n": 1 }).await.unwrap();
    update(&site, "DFW", "DFW a", doc! { "$set": { "n": 100 } }).await;
    update(&site, "DFW", "DFW refused", doc! { "$inc": { "n": 1 } }).await;
    update(&site, HUB, "DFW many 03", doc! { "$set": { "n": 101 } }).await;
    update(&site, HUB, "BOS a", doc! { "$set": { "n": 102 } }).await;
    site.at(HUB).insert_one(doc! { "_id": "HOU from the hub", "_pk": "HOU", "n": 103 }).await.unwrap();
    site.settle().await;
    assert_eq!(differing(&site, TRIANGLE).await, apart());
    let has = async |name: &str, document: Document| site.at(name).count_documents(document).await.unwrap() == 1;
    assert!(has("HOU", doc! { "_id": "DFW new", "n": 1 }).await);
    assert!(!has("HOU", doc! { "_id": { "vehicle": "bus", "number": 12 } }).await);
    assert!(has("DFW", doc! { "_id": "HOU new", "_pk": "HOU" }).await);
    assert!(has("HOU", doc! { "_id": "DFW a", "n": 100 }).await);
    assert!(has("DFW", doc! { "_id": "DFW many 03", "n": 101 }).await);
    assert!(has("BOS", doc! { "_id": "BOS a", "n": 102 }).await);
    assert!(has("DFW", doc! { "_id": "HOU from the hub", "n": 103 }).await);
    for id in ["BOS foreign", "HOU foreign"] {
        assert!(has("DFW", doc! { "_id": id }).await && !has(HUB, doc! { "_id": id }).await, "{id}");
    }

    // The dead letter counts the later change, and can be tried again.
    assert_eq!(saved(&site, HUB, "dead_letters").await[0].get_i64("later_changes").unwrap(), 3);
    site.at(HUB).drop_index("key_1").await.unwrap();
    let (done, text) = site.command(&["dead-letters", "retry", "DFW"]);
    assert!(done, "{text}");
    eventually("the dead letter is gone", async || letters(&site) == json!([])).await;
    assert!(has(HUB, doc! { "_id": "DFW refused", "n": 3 }).await);
    assert_eq!(saved(&site, HUB, "dead_letters").await, []);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_0_1_0_had_under_way_is_finished_by_its_sessions_notes_and_bounds() {
    let mut site = Site::shared(TRIANGLE).await;
    load_documents(&site, TRIANGLE).await;
    // The destinations have these as they will be after changes that the links have not passed yet.
    let two = doc! { "$set": { "n": 2 } };
    update(&site, HUB, "HOU c", two.clone()).await;
    update(&site, "DFW", "HOU c", two.clone()).await;
    update(&site, "DFW", "DFW c", two.clone()).await;
    let servers = servers(&site, TRIANGLE).await;
    load_metadata(&site, &servers).await;
    for (name, id) in [("HOU", "HOU c"), (HUB, "DFW c")] {
        update(&site, name, id, doc! { "$set": { "n": 1 } }).await;
        update(&site, name, id, two.clone()).await;
    }
    // An application at DFW changes documents; then a hub edit of each, which is noted, is applied there.
    let mut session = site.client("DFW").start_session().await.unwrap();
    let edited = [("DFW a", "n"), ("DFW b", "n"), ("DFW many 04", "round")];
    for (id, field) in edited {
        let before = site.at("DFW").find_one(doc! { "_id": id }).await.unwrap().unwrap().get(field).unwrap().clone();
        update(&site, "DFW", id, doc! { "$set": { field: 50 } }).await;
        session.start_transaction().await.unwrap();
        let dfw = site.at("DFW");
        let edit = dfw.update_one(doc! { "_id": id }, doc! { "$set": { field: before } });
        assert_eq!(edit.session(&mut session).await.unwrap().modified_count, 1);
        session.commit_transaction().await.unwrap();
    }
    // A session is the server's own: this one takes the place of the one that 0.1.0 wrote with.
    let sessions = site.own_collection("DFW", "sessions");
    let in_use = doc! { "link": "downlink:DFW", "ended_at": { "$exists": false } };
    let mut registered = sessions.find_one_and_delete(in_use).await.unwrap().unwrap();
    registered.insert("_id", session.id().get("id").unwrap().clone());
    sessions.insert_one(registered).await.unwrap();
    for (name, link, source) in [(HUB, "uplink:HOU", "HOU"), ("DFW", "downlink:DFW", HUB)] {
        let now = site.client(source).database("admin").run_command(doc! { "ping": 1 }).await.unwrap();
        let until = doc! { "$set": { "ahead.0.until": now.get_timestamp("operationTime").unwrap() } };
        let checkpoints = site.own_collection(name, "checkpoints");
        assert_eq!(checkpoints.update_one(doc! { "_id": link }, until).await.unwrap().modified_count, 1);
    }
    let mut at_hub = Events::watch(site.at(HUB)).await;
    let mut at_dfw = Events::watch(site.at("DFW")).await;

    site.start().await;
    site.settle().await;
    // The sessions: the hub edits do not go up. The notes: the own changes, which the hub has after them, come down.
    eventually("both sides are equal", async || differing(&site, TRIANGLE).await == apart()).await;
    for (id, field) in edited {
        for name in [HUB, "DFW", "HOU"] {
            let document = site.at(name).find_one(doc! { "_id": id }).await.unwrap().unwrap();
            assert_eq!(document.get_i32(field).unwrap(), 50, "{name}: {document}");
        }
    }
    // The bounds: what is ahead does not go back to 1 on its way to 2.
    let ids = |events: Vec<mongodb::change_stream::event::ChangeStreamEvent<Document>>| {
        let id = |key: Document| key.get_str("_id").unwrap().to_owned();
        events.into_iter().filter_map(|event| event.document_key.map(id)).collect::<BTreeSet<_>>()
    };
    let edited_ids = BTreeSet::from(edited.map(|(id, _)| id.to_owned()));
    assert_eq!(ids(at_hub.so_far().await), edited_ids);
    assert_eq!(ids(at_dfw.so_far().await), edited_ids);
    assert!(!site.log().contains("copying"), "{}", site.log());
    // Notes that nothing needs any more go.
    eventually("the notes are gone", async || {
        update(&site, HUB, "DFW hub", doc! { "$inc": { "n": 1 } }).await;
        site.settle().await;
        saved(&site, "DFW", "hub_edits").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconcile_that_0_1_0_began_goes_on_where_it_was() {
    let mut site = Site::shared(WITH_AUS).await;
    load_documents(&site, WITH_AUS).await;
    // Missed when the downlink lost its place. AUS has compared BOS, and not its own zone.
    update(&site, HUB, "AUS a", doc! { "$set": { "n": 1 } }).await;
    let loaded = load_metadata(&site, &servers(&site, WITH_AUS).await).await;
    let before = &loaded["downlink:AUS"];
    assert_eq!((before.get_str("reconciling").unwrap(), before.get_array("copied").unwrap().len()), ("lost", 0));
    site.start().await;
    site.settle().await;
    let log = site.log();
    let copying: Vec<_> = log.lines().filter(|line| line.contains("copying")).collect();
    assert_eq!(copying.len(), 2, "{log}");
    for part in ["zone=BOS policy=WatchAgain resumed=true", "zone=AUS policy=HubReconciles resumed=false"] {
        assert!(copying.iter().any(|line| line.contains(part)), "{part} is not in {copying:#?}");
    }
    let states: Vec<_> =
        log.lines().filter(|line| line.contains("AUS/writer") && line.contains("state from=")).collect();
    assert!(states[0].contains("to=\"reconciling\""), "{states:#?}");
    assert_eq!(differing(&site, WITH_AUS).await, apart());
    let after = checkpoint(&site, "downlink:AUS").await;
    assert_eq!(after.get_array("copied").unwrap(), before.get_array("left").unwrap());
    assert_eq!((after.get_str("reconciling").unwrap(), after.get_array("left").unwrap().len()), ("no", 0));
    assert!(!after.contains_key("copying"), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_a_spoke_of_0_1_0_left_is_compared_when_it_is_watched_again() {
    let mut site = Site::shared(TRIANGLE).await;
    load_documents(&site, TRIANGLE).await;
    for name in [HUB, "DFW", "HOU"] {
        site.at(name).delete_one(doc! { "_id": "DFW hub" }).await.unwrap();
    }
    load_metadata(&site, &servers(&site, TRIANGLE).await).await;
    site.watch("BOS", &["DFW"]);
    site.start().await;
    site.settle().await;
    let log = site.log();
    let copying: Vec<_> = log.lines().filter(|line| line.contains("copying")).collect();
    assert_eq!(copying.len(), 1, "{log}");
    assert!(copying[0].contains("zone=DFW policy=WatchAgain"), "{copying:?}");
    let again: Topology<'_> = &[("DFW", &["HOU"]), ("HOU", &["DFW"]), ("BOS", &["DFW"])];
    assert_eq!(differing(&site, again).await, apart());
    // Versions that the copy replaced are kept as well.
    let mut set_aside = saved(&site, "BOS", "set_aside").await;
    set_aside.retain(|kept| kept.get_str("reason").is_ok_and(|reason| reason.starts_with("missing")));
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    assert_eq!(set_aside[0].get_document("document").unwrap().get_str("_id").unwrap(), "DFW hub");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_was_made_again_since_0_1_0_is_copied_again() {
    let (mut site, _) = left_by_0_1_0(TRIANGLE).await;
    // The UUIDs of the fixture stay: one of a source, one of a destination.
    for (name, link, list) in [(HUB, "uplink:HOU", "collections"), ("BOS", "downlink:BOS", "destination_collections")] {
        let saved =
            fixture(name, "checkpoints").into_iter().find(|saved| saved.get_str("_id").unwrap() == link).unwrap();
        let former = saved.get_array(list).unwrap()[0].as_document().unwrap().get("uuid").unwrap().clone();
        let former = doc! { "$set": { format!("{list}.0.uuid"): former } };
        let checkpoints = site.own_collection(name, "checkpoints");
        assert_eq!(checkpoints.update_one(doc! { "_id": link }, former).await.unwrap().modified_count, 1, "{link}");
    }
    site.start().await;
    site.settle().await;
    let log = site.log();
    for policy in ["zone=HOU policy=OwnerPushes", "zone=BOS policy=HubReconciles"] {
        let copies = log.lines().filter(|line| line.contains("copying") && line.contains(policy)).count();
        assert_eq!(copies, 1, "{policy} is not in {log}");
    }
    assert!(!log.contains("zone=DFW policy"), "{log}");
    assert_eq!(differing(&site, TRIANGLE).await, apart());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_0_1_0_began_goes_on_where_it_was() {
    let (mut site, _) = left_by_0_1_0(TRIANGLE).await;
    site.start().await;
    // At BOS in what is compared already, and in what is not; at HOU in what is compared already.
    let late = bson::oid::ObjectId::parse_str("ffffffffffffffffffffffff").unwrap();
    for (name, id) in [("BOS", Bson::from("DFW aa")), ("BOS", late.into()), ("HOU", "HOU strange".into())] {
        site.at(name).insert_one(doc! { "_id": id, "_pk": "NOWHERE" }).await.unwrap();
    }
    site.settle().await;
    let (code, text) = site.command_code(&["verify", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, DIFFERENT, "{report:#}");
    let finding = |spoke: &str, kind: &str, id: Value| json!([spoke, kind, id]).to_string();
    // What BOS kept when it left the zone of DFW: 0.1.0 had found that.
    let kept = fixture("BOS", "messages").into_iter().filter(|document| document.get_str("_pk").unwrap() == "DFW");
    let mut expected: BTreeSet<_> =
        kept.map(|document| finding("BOS", "foreign", document.get("_id").unwrap().clone().into())).collect();
    assert_eq!(expected.len(), 16);
    expected.insert(finding("BOS", "foreign", Bson::from(late).into()));
    expected.insert(finding("DFW", "foreign", json!("BOS foreign")));
    expected.insert(finding("DFW", "foreign", json!("HOU foreign")));
    expected.insert(finding("DFW", "parked", json!("DFW refused")));
    let found =
        report["findings"].as_array().unwrap().iter().map(|found| {
            finding(found["spoke"].as_str().unwrap(), found["kind"].as_str().unwrap(), found["id"].clone())
        });
    assert_eq!(found.collect::<BTreeSet<_>>(), expected, "{report:#}");
    // 0.1.0 had compared 24 of these. What it had walked is not counted twice.
    assert_eq!(report["documents"], 46, "{report:#}");
    assert_eq!(saved(&site, HUB, "verifications").await, []);
}
