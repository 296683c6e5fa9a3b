//! What one spoke's server, an ordinary rotation of credentials, or a server without some command can do to a link:
//! it ends at the spoke, and heals.

use bson::{Document, doc};
use nix::sys::signal::Signal;
use testbed::node::Options;

use super::support::site::{HUB, TRIANGLE, Topology};
use super::support::{Site, eventually};

const PAIR: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &[])];

/// Lets the user `sync` do everything, with this password.
async fn create_user(site: &Site, name: &str, password: &str) {
    let user = doc! { "createUser": "sync", "pwd": password, "roles": ["root"] };
    site.client(name).database("admin").run_command(user).await.unwrap();
}

/// A site whose servers ask for a user and password.
async fn with_users(password: &str) -> Site {
    let mut site = Site::own(PAIR, Options { users: true, ..Options::default() }).await;
    for name in [HUB, "DFW", "HOU"] {
        create_user(&site, name, password).await;
        let uri = site.nodes[name].uri_of(&format!("sync:{password}@"));
        site.reach(name, &format!("{uri}&authSource=admin"));
    }
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_place_in_one_spokes_checkpoint_stops_no_other_spoke() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": "first", "_pk": "HOU" }).await.unwrap();
    site.assert_converged().await;
    for damage in ["ZZZZ", "FFFFFFFFFFFF", "", "2B0229", "2B022C0100296E5A1004"] {
        site.stop().await;
        let checkpoints = site.own_collection("HOU", "checkpoints");
        let saved = checkpoints.find_one(doc! { "_id": "downlink:HOU" }).await.unwrap().unwrap();
        let place = saved.get_document("token").unwrap().get_str("_data").unwrap()[..18].to_owned() + damage;
        let set = doc! { "$set": { "token": { "_data": place } } };
        checkpoints.update_one(doc! { "_id": "downlink:HOU" }, set).await.unwrap();
        site.launch();
        for zone in ["DFW", "HOU", "BOS"] {
            let document = doc! { "_id": format!("{zone} after {damage}"), "_pk": zone };
            site.at(HUB).insert_one(document).await.unwrap();
        }
        site.ready().await;
        site.assert_converged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_dropped_and_created_again_needs_no_new_process() {
    let mut site = with_users("first").await;
    site.start().await;
    // At a spoke: a restart of the spoke is enough. At the hub: so is a reload.
    for (name, is_hub) in [("HOU", false), (HUB, true)] {
        site.client(name).database("admin").run_command(doc! { "dropUser": "sync" }).await.unwrap();
        for zone in ["DFW", "HOU"].into_iter().filter(|zone| is_hub || *zone == name) {
            let document = doc! { "_id": format!("{zone} waits for {name}"), "_pk": zone };
            site.at(zone).insert_one(document).await.unwrap();
            eventually("it halts", async || site.spoke_status(zone)["state"] == "halted").await;
        }
        if is_hub {
            eventually("the hub's stream halts", async || site.status()["hub"]["state"] == "halted").await;
        }
        create_user(&site, name, "first").await;
        let program = site.program.as_ref().unwrap();
        if is_hub {
            program.process().signal(Signal::SIGHUP).unwrap();
        } else {
            assert_eq!(program.post("/api/v1/spokes/HOU/restart").unwrap().0, 202);
        }
        site.ready().await;
        site.assert_converged().await;
    }
    assert!(site.at(HUB).find_one(doc! { "_id": "HOU waits for HOU" }).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_password_in_a_file_is_used_without_a_signal() {
    let mut site = with_users("first").await;
    site.uris_in_files = true;
    site.start().await;
    for name in [HUB, "DFW", "HOU"] {
        let change = doc! { "updateUser": "sync", "pwd": "second" };
        site.client(name).database("admin").run_command(change).await.unwrap();
        let uri = site.nodes[name].uri_of("sync:second@");
        site.reach(name, &format!("{uri}&authSource=admin"));
    }
    let read = || site.log().matches("configuration read again").count();
    let before = read();
    site.write_config();
    eventually("the files are read again", async || read() > before).await;
    eventually("the hub's password is known", async || site.log().contains("other credentials for the hub")).await;
    site.ready().await;
    site.arrives_from_houston("with the second password").await;
    for zone in ["DFW", "HOU"] {
        let restart = format!("/api/v1/spokes/{zone}/restart");
        assert_eq!(site.program.as_ref().unwrap().post(&restart).unwrap().0, 202);
    }
    site.arrives_from_houston("over new connections").await;
    assert!(!site.log().contains("second@") && !site.log().contains("first@"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_no_sessions_stops_no_link() {
    const ATLAS_ERROR: i32 = 8000;
    let mut site = Site::own(PAIR, Options::default()).await;
    for code in [ATLAS_ERROR, 13, 59, 115] {
        let data = doc! { "failCommands": ["killSessions"], "errorCode": code };
        for node in site.nodes.values() {
            let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data.clone() };
            node.admin(point).await.unwrap();
        }
        site.start().await;
        site.arrives_from_houston(&format!("{code} at first")).await;
        assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/restart").unwrap().0, 202);
        site.arrives_from_houston(&format!("{code} after a restart")).await;
        site.kill();
    }
    // Said once for each of the four sessions of a spoke, in each of the four processes, and not once a restart.
    let said = site.log().matches("earlier sessions are not ended").count();
    assert!((1..=4 * 2 * 4).contains(&said), "{said} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_of_foreign_documents_that_is_too_large_for_memory_is_still_known() {
    const DOCUMENTS: i32 = 51_000;
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    let foreign = (0..DOCUMENTS).map(|id| doc! { "_id": id, "_pk": "HOU", "from": "DFW" });
    site.at("DFW").insert_many(foreign).await.unwrap();
    let register = site.own_collection("DFW", "foreign");
    eventually("all are registered", async || {
        register.count_documents(doc! {}).await.unwrap() == u64::try_from(DOCUMENTS).unwrap()
    })
    .await;
    for round in 0..2 {
        // The hub's documents of the same `_id`s replace three of them, and copies are set aside.
        let ids = || (0..3).map(|number| round * 3 + number);
        site.at("HOU").insert_many(ids().map(|id| doc! { "_id": id, "_pk": "HOU", "from": "HOU" })).await.unwrap();
        eventually("HOU's documents are at DFW", async || {
            let ours = doc! { "_id": { "$in": ids().collect::<Vec<i32>>() }, "from": "HOU" };
            site.at("DFW").count_documents(ours).await.unwrap() == 3
        })
        .await;
        let aside = site.own_collection("DFW", "set_aside");
        let kept: Vec<Document> = {
            use futures_util::TryStreamExt;
            aside.find(doc! {}).await.unwrap().try_collect().await.unwrap()
        };
        assert_eq!(kept.len(), usize::try_from((round + 1) * 3).unwrap(), "{kept:?}");
        // A comparison deletes none of the others, before and after a new start.
        assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/DFW/resync").unwrap().0, 202);
        let begun = || site.log().matches("comparing everything").count() >= 2 * usize::try_from(round + 1).unwrap();
        eventually("both links compare", async || begun()).await;
        site.ready().await;
        assert_eq!(
            site.at("DFW").count_documents(doc! { "_pk": "HOU" }).await.unwrap(),
            u64::try_from(DOCUMENTS).unwrap()
        );
        site.stop().await;
        site.start().await;
    }
}

/// What stands behind the connection string of a spoke that is no server.
#[derive(Clone, Copy, Debug)]
enum Impostor {
    Garbage,
    Silence,
    /// An answer that says it is 2 GB long, and never ends.
    Endless,
    /// A greeting that names 20,000 members.
    Crowd,
}

impl Impostor {
    async fn serve(self, listener: tokio::net::TcpListener) {
        let address = listener.local_addr().unwrap().to_string();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(self.answer(stream, address.clone()));
        }
    }

    async fn answer(self, mut stream: tokio::net::TcpStream, address: String) -> Option<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.ok()?;
            let length = i32::from_le_bytes(head[..4].try_into().unwrap());
            let mut body = vec![0; usize::try_from(length).unwrap().checked_sub(16)?];
            stream.read_exact(&mut body).await.ok()?;
            let header = |length: usize, kind: i32| {
                let length = i32::try_from(length).unwrap().to_le_bytes();
                [&length[..], &[0; 4], &head[4..8], &kind.to_le_bytes()].concat()
            };
            match self {
                Self::Garbage => stream.write_all(&[0xA5; 4_096]).await.ok()?,
                Self::Silence => {}
                Self::Endless => {
                    stream.write_all(&header(2_000_000_000, 2013)).await.ok()?;
                    while stream.write_all(&[0; 65_536]).await.is_ok() {}
                    return None;
                }
                Self::Crowd => {
                    let members = (0..20_000).map(|number| format!("127.0.{}.{}:1", number / 250, 1 + number % 250));
                    let hosts: Vec<String> = std::iter::once(address.clone()).chain(members).collect();
                    let hello = doc! {
                        "ok": 1, "helloOk": true, "isWritablePrimary": true, "ismaster": true, "setName": "rs",
                        "setVersion": 1, "hosts": hosts, "me": &address, "primary": &address, "minWireVersion": 0,
                        "maxWireVersion": 17, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
                        "maxWriteBatchSize": 100_000, "logicalSessionTimeoutMinutes": 30,
                    };
                    let hello = bson::serialize_to_vec(&hello).unwrap();
                    let is_old = i32::from_le_bytes(head[12..].try_into().unwrap()) == 2004;
                    // The answer to an old question: flags, cursor, and number of documents; to a new one: flags.
                    let before = if is_old { [&[0; 16][..], &1_i32.to_le_bytes()].concat() } else { vec![0; 5] };
                    let kind = if is_old { 1 } else { 2013 };
                    let answer = [header(16 + before.len() + hello.len(), kind), before, hello].concat();
                    stream.write_all(&answer).await.ok()?;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_is_no_server_costs_the_others_nothing() {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.arrives_from_houston("before").await;
    let memory = site.memory("VmHWM");
    for impostor in [Impostor::Garbage, Impostor::Silence, Impostor::Endless, Impostor::Crowd] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("mongodb://{}/?replicaSet=rs", listener.local_addr().unwrap());
        let serving = tokio::spawn(impostor.serve(listener));
        site.kill();
        site.reach("BOS", &uri);
        site.launch();
        eventually(&format!("BOS does not run, with {impostor:?}"), async || {
            let status = site.program.as_ref().unwrap().get("/api/v1/status").ok();
            status.is_some_and(|(_, status)| status.to_string().contains("names more than 50 members"))
                || !matches!(impostor, Impostor::Crowd)
        })
        .await;
        for number in 0..20 {
            site.arrives_from_houston(&format!("{impostor:?} {number}")).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let (now, descriptors) = (site.memory("VmHWM"), site.descriptors());
        assert!(now < memory + 100_000 && descriptors < 300, "{impostor:?}: {memory} kB, then {now}; {descriptors}");
        serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_too_many_dead_letters_stops_its_own_link_until_somebody_looks() {
    const LETTERS: i32 = 250_000;
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site.stop().await;
    let letters = site.own_collection("HOU", "dead_letters");
    let ns = site.at("HOU").namespace().to_string();
    let letter = |document: i32| doc! { "_id": { "link": "downlink:HOU", "ns": &ns, "document": document } };
    for first in (0..=LETTERS).step_by(50_000) {
        letters.insert_many((first..first + 50_000).map(letter)).await.unwrap();
    }
    site.launch();
    eventually("the link waits for somebody", async || {
        site.log().contains("downlink:HOU has 250000 dead letters")
            && site.spoke_status("HOU")["downlink"]["state"] == "halted"
    })
    .await;
    site.arrives_from_houston("past the halted link").await;
    letters.drop().await.unwrap();
    letters.insert_many((0..2_000).map(letter)).await.unwrap();
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/restart").unwrap().0, 202);
    eventually("the link goes on", async || site.spoke_status("HOU")["downlink"]["state"] == "streaming").await;
    // The list comes in pages, of what is shown.
    let page = |query: &str| site.program.as_ref().unwrap().get(&format!("/api/v1/dead-letters{query}")).unwrap().1;
    let length = |query: &str| page(query).as_array().unwrap().len();
    assert_eq!((length(""), length("?offset=990"), length("?limit=7&zone=HOU")), (1_000, 10, 7));
    assert_eq!((length("?zone=DFW"), length("?offset=5000")), (0, 0));
    assert!(site.command(&["dead-letters", "drop", "HOU"]).0);
    eventually("all are dropped", async || site.spoke_status("HOU")["dead_letters"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoke_that_may_move_nothing_creates_no_document_in_another_zone() {
    let mut site = Site::shared(PAIR).await;
    site.set_key("DFW", "moves", "refuse");
    site.at("DFW").insert_many((0..4).map(|id| doc! { "_id": id, "_pk": "DFW", "n": { "m": 1 } })).await.unwrap();
    site.start().await;
    site.at("HOU").insert_one(doc! { "_id": "HOU's", "_pk": "HOU" }).await.unwrap();
    site.assert_converged().await;
    // By an update, by a replace, after a nested change, and at once after the insert.
    let (at_spoke, out) = (site.at("DFW"), doc! { "$set": { "_pk": "HOU" } });
    at_spoke.update_one(doc! { "_id": 0 }, out.clone()).await.unwrap();
    at_spoke.replace_one(doc! { "_id": 1 }, doc! { "_pk": "HOU" }).await.unwrap();
    at_spoke.update_one(doc! { "_id": 2 }, doc! { "$set": { "n.m": 2 } }).await.unwrap();
    at_spoke.update_one(doc! { "_id": 2 }, out.clone()).await.unwrap();
    at_spoke.insert_one(doc! { "_id": 4, "_pk": "DFW" }).await.unwrap();
    at_spoke.update_one(doc! { "_id": 4 }, out.clone()).await.unwrap();
    // The other spoke may move its documents.
    site.at("HOU").update_one(doc! { "_id": "HOU's" }, doc! { "$set": { "_pk": "DFW" } }).await.unwrap();
    at_spoke.insert_one(doc! { "_id": "later", "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    let (hub, moved) = (site.at(HUB), doc! { "_id": { "$in": [0, 1, 2, 4] }, "_pk": "HOU" });
    assert_eq!(hub.count_documents(doc! { "_pk": "DFW" }).await.unwrap(), 7, "nothing has moved but HOU's");
    assert_eq!(site.at("HOU").count_documents(doc! {}).await.unwrap(), 0);
    let letters = site.own_collection(HUB, "dead_letters");
    assert_eq!(letters.count_documents(doc! { "reason.code": 13 }).await.unwrap(), 4);
    // Neither a comparison nor a retry moves or removes them.
    assert!(site.command(&["resync", "DFW", "--wait"]).0);
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    at_spoke.insert_one(doc! { "_id": "after a retry", "_pk": "DFW" }).await.unwrap();
    site.settle().await;
    assert_eq!(at_spoke.count_documents(moved.clone()).await.unwrap(), 4);
    assert_eq!(hub.count_documents(moved.clone()).await.unwrap(), 0);
    assert_eq!(letters.count_documents(doc! {}).await.unwrap(), 4);
    // Allowed, the moves go on.
    site.stop().await;
    site.set_key("DFW", "moves", "allow");
    site.start().await;
    assert!(site.command(&["dead-letters", "retry", "DFW"]).0);
    eventually("they move", async || site.at("HOU").count_documents(moved.clone()).await.unwrap() == 4).await;
    site.assert_converged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_full_of_dead_letters_goes_on_once_they_are_dropped() {
    const MEGABYTES_IN_ALL: usize = 64;
    let mut site = Site::shared(PAIR).await;
    site.refuse_the_same_u().await;
    site.start().await;
    site.stop().await;
    let ns = site.at("HOU").namespace().to_string();
    let letters = site.own_collection(HUB, "dead_letters");
    site.at(HUB).insert_one(doc! { "_id": "holder", "_pk": "NOBODY", "u": 1 }).await.unwrap();
    for number in 0..MEGABYTES_IN_ALL {
        let id = format!("{number:08}").repeat(125_000);
        let reason = doc! { "code": 11000, "message": "" };
        let id = doc! { "link": "uplink:HOU", "ns": &ns, "document": id };
        letters.insert_one(doc! { "_id": id, "reason": reason, "is_fresh": true }).await.unwrap();
    }
    site.at("HOU").insert_one(doc! { "_id": "one more", "_pk": "HOU", "u": 1 }).await.unwrap();
    for starts in 1..=2 {
        site.launch();
        eventually(&format!("the link waits for somebody after start {starts}"), async || {
            site.log().matches("uplink:HOU has 250000 dead letters, or _ids of 64000000 bytes").count() >= starts
        })
        .await;
        if starts == 1 {
            site.stop().await;
        }
    }
    assert!(site.command(&["dead-letters", "drop", "HOU"]).0);
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/restart").unwrap().0, 202);
    site.ready().await;
    site.arrives_from_houston("once they are dropped").await;
    eventually("the last one is a letter", async || site.spoke_status("HOU")["dead_letters"] == 1).await;
}
