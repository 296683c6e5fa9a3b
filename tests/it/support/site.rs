//! A hub and its spokes, with spokesync between them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use bson::{Document, RawDocumentBuf, Timestamp, doc};
use futures_util::TryStreamExt;
use mongodb::options::IndexOptions;
use mongodb::{Client, Collection, IndexModel};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use testbed::node::{Node, Options, free_port};
use testbed::process::Process;
use testbed::program::Program;
use tokio::sync::OnceCell;

use super::{LIMIT, eventually};

/// The name of the hub among the servers.
pub const HUB: &str = "hub";

/// The watched zones of each spoke, by the spoke's own zone.
pub type Topology<'a> = &'a [(&'a str, &'a [&'a str])];

/// Two spokes that watch each other, and one that watches nothing.
pub const TRIANGLE: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &["DFW"]), ("BOS", &[])];

/// A hub and its spokes. Each site has a separate database, so that sites can share servers.
pub struct Site {
    pub program: Option<Program>,
    /// The servers, if the site does not share them.
    pub nodes: BTreeMap<String, Node>,
    clients: BTreeMap<String, Client>,
    uris: BTreeMap<String, String>,
    topology: Vec<(String, Vec<String>)>,
    /// More keys of a spoke, by zone.
    settings: BTreeMap<(String, &'static str), String>,
    /// Shared servers that this site does not use.
    spare: Vec<String>,
    /// The synced collections.
    pub namespaces: Vec<String>,
    /// Lines for the beginning of `spokes.toml`.
    pub first_config: String,
    /// More lines for `spokes.toml`.
    pub more_config: String,
    /// More lines for the `[http]` table.
    pub http_config: String,
    /// The connection strings are in files of their own.
    pub uris_in_files: bool,
    /// More lines for the `[sync]` table.
    sync_config: String,
    partition_key: String,
    database: String,
    folder: TempDir,
    port: u16,
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the program's log:\n{}", self.log());
        }
    }
}

impl Site {
    /// A site on servers that other tests use, too.
    pub async fn shared(topology: Topology<'_>) -> Self {
        static SERVERS: OnceCell<Vec<Node>> = OnceCell::const_new();
        const SHARED: usize = 5;
        let servers = SERVERS.get_or_init(async || start_all(SHARED, &Options::default()).await).await;
        let names = std::iter::once(HUB).chain(topology.iter().map(|(zone, _)| *zone));
        let uris: BTreeMap<_, _> = names.zip(servers).map(|(name, node)| (name.to_owned(), node.uri())).collect();
        let spare = servers.iter().skip(uris.len()).map(Node::uri).collect();
        let mut site = Self::new(topology, uris, BTreeMap::new()).await;
        site.spare = spare;
        site
    }

    /// A site in which one server plays every spoke, with a separate address for each.
    pub async fn crowd(topology: Topology<'_>) -> Self {
        let options = Options { bind: Some("0.0.0.0".to_owned()), ..Options::default() };
        let mut servers = start_all(2, &options).await;
        let (crowd, hub) = (servers.remove(1), servers.remove(0));
        let mut uris = BTreeMap::from([(HUB.to_owned(), hub.uri())]);
        for (number, (zone, _)) in topology.iter().enumerate() {
            let uri = format!("mongodb://127.0.1.{}:{}/?directConnection=true", number + 1, crowd.port());
            uris.insert((*zone).to_owned(), uri);
        }
        let nodes = BTreeMap::from([(HUB.to_owned(), hub), ("crowd".to_owned(), crowd)]);
        let mut site = Self::new(topology, uris, nodes).await;
        site.sync_config = "allow_shared_replica_sets = true".to_owned();
        site
    }

    /// Begins again on the same servers, with nothing of before.
    pub async fn renew(&mut self, topology: Topology<'_>) {
        if self.program.is_some() {
            self.kill();
        }
        let nodes = std::mem::take(&mut self.nodes);
        let uris = nodes.iter().map(|(name, node)| (name.clone(), node.uri())).collect();
        *self = Self::new(topology, uris, nodes).await;
    }

    /// The spokes with their watched zones.
    pub fn topology(&self) -> &[(String, Vec<String>)] {
        &self.topology
    }

    /// Sets the connection string by which the program reaches a server, from the next start on.
    pub fn reach(&mut self, name: &str, uri: &str) {
        self.uris.insert(name.to_owned(), uri.to_owned());
    }

    /// Starts another program with the same configuration except for the port, with a log of its own.
    pub fn member(&self, name: &str) -> Program {
        self.member_by(name, &self.uris[HUB])
    }

    /// The same, with another connection string of the hub.
    pub fn member_by(&self, name: &str, hub: &str) -> Program {
        let port = free_port().unwrap();
        let text = std::fs::read_to_string(self.write_config()).unwrap();
        let text = text.replace(&format!(":{}\"", self.port), &format!(":{port}\""));
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, text.replace(&self.uris[HUB], hub)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.arg("run").arg("--config").arg(path);
        let log = self.folder.path().join(format!("{name}.log"));
        Program::start(&command, &format!("127.0.0.1:{port}"), &log).unwrap()
    }

    /// Runs a command of the program. Returns true if the command succeeded, and the output with the errors.
    pub fn command(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        let output = command.args(arguments).arg("--config").arg(self.write_config()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Starts a command of the program that may be interrupted, with its output in a file of the site's folder.
    pub fn begin(&self, arguments: &[&str], output: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.args(arguments).arg("--config").arg(self.write_config());
        Process::start(&command, &self.folder.path().join(output)).unwrap()
    }

    /// Runs a command of the program. Returns the exit code, and the standard output.
    pub fn command_code(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        let output = command.args(arguments).arg("--config").arg(self.write_config()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// Reserves a shared server for a spoke that will be added later.
    pub async fn reserve(&mut self, zone: &str) {
        let uri = self.spare.pop().expect("a spare server exists");
        self.adopt(zone, &uri).await;
    }

    /// Sets the server of a spoke that will be added later.
    pub async fn adopt(&mut self, zone: &str, uri: &str) {
        self.clients.insert(zone.to_owned(), Client::with_uri_str(uri).await.unwrap());
        self.uris.insert(zone.to_owned(), uri.to_owned());
    }

    /// Makes a new client for a server: one that knew another replica set there takes the new one for an old member.
    pub async fn forget_client(&mut self, name: &str) {
        let client = Client::with_uri_str(self.nodes[name].uri()).await.unwrap();
        self.clients.insert(name.to_owned(), client);
    }

    /// Adds a spoke that has a reserved server.
    pub fn add(&mut self, zone: &str, watch: &[&str]) {
        let watch = watch.iter().map(|zone| (*zone).to_owned()).collect();
        self.topology.push((zone.to_owned(), watch));
    }

    /// Removes a spoke from the configuration.
    pub fn remove(&mut self, zone: &str) {
        self.topology.retain(|(own, _)| own != zone);
    }

    /// Sets the field that names a document's zone, from the next start on.
    pub fn partition_key(&mut self, field: &str) {
        field.clone_into(&mut self.partition_key);
    }

    /// Sets the policy for zones that a spoke no longer watches.
    pub fn on_unwatch(&mut self, zone: &str, policy: &str) {
        self.set_key(zone, "on_unwatch", policy);
    }

    /// Sets a key of a spoke, from the next `write_config` on.
    pub fn set_key(&mut self, zone: &str, key: &'static str, value: &str) {
        self.settings.insert((zone.to_owned(), key), value.to_owned());
    }

    /// A site on shared servers whose oplogs no longer hold their beginning.
    pub async fn with_short_history(topology: Topology<'_>) -> Self {
        static SERVERS: OnceCell<Vec<Node>> = OnceCell::const_new();
        const SHARED: usize = 4;
        let servers = SERVERS.get_or_init(async || {
            // The server keeps the part of the oplog that its last checkpoint on disk still needs.
            let arguments = vec!["--syncdelay".to_owned(), "1".to_owned()];
            let options = Options { oplog_megabytes: Some(16), arguments, ..Options::default() };
            let servers = start_all(SHARED, &options).await;
            futures_util::future::join_all(servers.iter().map(forget_the_beginning)).await;
            servers
        });
        let names = std::iter::once(HUB).chain(topology.iter().map(|(zone, _)| *zone));
        let uris = names.zip(servers.await).map(|(name, node)| (name.to_owned(), node.uri())).collect();
        Self::new(topology, uris, BTreeMap::new()).await
    }

    /// A site on separate servers, which a test may break.
    pub async fn own(topology: Topology<'_>, options: Options) -> Self {
        let nodes = start_all(topology.len() + 1, &options).await;
        let names = std::iter::once(HUB).chain(topology.iter().map(|(zone, _)| *zone));
        let nodes: BTreeMap<String, Node> = names.map(str::to_owned).zip(nodes).collect();
        let uris = nodes.iter().map(|(name, node)| (name.clone(), node.uri())).collect();
        Self::new(topology, uris, nodes).await
    }

    async fn new(topology: Topology<'_>, uris: BTreeMap<String, String>, nodes: BTreeMap<String, Node>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let database = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut clients = BTreeMap::new();
        for (name, uri) in &uris {
            clients.insert(name.clone(), Client::with_uri_str(uri).await.unwrap());
        }
        let owned = |(zone, watch): &(&str, &[&str])| {
            ((*zone).to_owned(), watch.iter().map(|zone| (*zone).to_owned()).collect())
        };
        Self {
            program: None,
            nodes,
            clients,
            uris,
            topology: topology.iter().map(owned).collect(),
            settings: BTreeMap::new(),
            spare: Vec::new(),
            namespaces: vec![format!("{database}.messages")],
            first_config: String::new(),
            more_config: String::new(),
            http_config: String::new(),
            uris_in_files: false,
            sync_config: String::new(),
            partition_key: "_pk".to_owned(),
            database,
            folder: TempDir::new().unwrap(),
            port: free_port().unwrap(),
        }
    }

    /// Starts the program, and waits until every spoke streams both ways.
    pub async fn start(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Starts the program.
    pub fn launch(&mut self) {
        let config = self.write_config();
        let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
        command.arg("run").arg("--config").arg(config);
        let address = format!("127.0.0.1:{}", self.port);
        self.program = Some(Program::start(&command, &address, &self.log_file()).unwrap());
    }

    /// Waits until every spoke streams both ways.
    pub async fn ready(&mut self) {
        self.program.as_mut().expect("the program runs").ready(LIMIT).await.unwrap();
    }

    /// Lets the program read its configuration again, and waits until it has.
    pub async fn reload(&self) {
        let before = self.log().matches("configuration").count();
        self.write_config();
        self.program.as_ref().expect("the program runs").process().signal(Signal::SIGHUP).unwrap();
        eventually("the configuration is read again", async || self.log().matches("configuration").count() > before)
            .await;
    }

    /// Runs the changes while the program stands still, so that they come in one batch.
    pub async fn in_one_batch(&self, changes: impl AsyncFnOnce()) {
        let process = self.program.as_ref().expect("the program runs").process();
        process.signal(Signal::SIGSTOP).unwrap();
        changes().await;
        process.signal(Signal::SIGCONT).unwrap();
    }

    /// Stops the program as an operator does, and expects exit code 0.
    pub async fn stop(&mut self) {
        let mut program = self.program.take().expect("the program runs");
        let exit = program.stop(Signal::SIGTERM, LIMIT).await.unwrap();
        assert_eq!(exit, Some(0), "{}", self.log());
    }

    /// Kills the program without warning, like a power cut.
    pub fn kill(&mut self) {
        self.program.take().expect("the program runs").kill().unwrap();
    }

    /// Changes the watched zones of a spoke, from the next start or reload on.
    pub fn watch(&mut self, zone: &str, watch: &[&str]) {
        let spoke = self.topology.iter_mut().find(|(own, _)| own == zone).unwrap();
        spoke.1 = watch.iter().map(|zone| (*zone).to_owned()).collect();
    }

    /// Writes the program's configuration, and returns its path.
    pub fn write_config(&self) -> PathBuf {
        let mut text = self.first_config.clone() + "\n";
        let uri = |name: &str| {
            if !self.uris_in_files {
                return format!("uri = {:?}", self.uris[name]);
            }
            std::fs::write(self.folder.path().join(name), &self.uris[name]).unwrap();
            format!("uri_file = {name:?}")
        };
        writeln!(text, "[hub]\n{}", uri(HUB)).unwrap();
        writeln!(text, "[sync]\nnamespaces = {:?}\nmetadata_database = {:?}", self.namespaces, self.metadata())
            .unwrap();
        writeln!(text, "partition_key = {:?}\n{}", self.partition_key, self.sync_config).unwrap();
        writeln!(text, "[http]\nlisten = \"127.0.0.1:{}\"\n{}", self.port, self.http_config).unwrap();
        writeln!(text, "{}", self.more_config).unwrap();
        for (zone, watch) in &self.topology {
            writeln!(text, "[[spoke]]\nzone = {zone:?}\n{}\nwatch = {watch:?}", uri(zone)).unwrap();
            for ((_, key), value) in self.settings.iter().filter(|((of, _), _)| of == zone) {
                writeln!(text, "{key} = {value:?}").unwrap();
            }
        }
        let path = self.folder.path().join("spokes.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The program's output so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The folder of the program's configuration.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The address of the program's HTTP interface.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The database of the program's own collections.
    pub fn metadata(&self) -> String {
        format!("{}_metadata", self.database)
    }

    /// The first synced collection at the hub or at a spoke.
    pub fn at(&self, name: &str) -> Collection<Document> {
        self.collection(name, 0)
    }

    /// A synced collection at the hub or at a spoke.
    pub fn collection(&self, name: &str, number: usize) -> Collection<Document> {
        let (database, collection) = self.namespaces[number].split_once('.').unwrap();
        self.clients[name].database(database).collection(collection)
    }

    /// One of the program's own collections.
    pub fn own_collection(&self, name: &str, collection: &str) -> Collection<Document> {
        self.clients[name].database(&self.metadata()).collection(collection)
    }

    /// The connection string of the hub or of a spoke.
    pub fn uri(&self, name: &str) -> &str {
        &self.uris[name]
    }

    /// The client of the hub or of a spoke.
    pub fn client(&self, name: &str) -> &Client {
        &self.clients[name]
    }

    /// The program's status.
    pub fn status(&self) -> serde_json::Value {
        self.program.as_ref().expect("the program runs").status().unwrap()
    }

    /// The status of one spoke.
    pub fn spoke_status(&self, zone: &str) -> serde_json::Value {
        let status = self.status();
        let spokes = status["spokes"].as_array().unwrap();
        spokes.iter().find(|spoke| spoke["zone"] == zone).unwrap().clone()
    }

    /// Waits until every write so far has arrived everywhere.
    pub async fn settle(&self) {
        // Several events of one transaction share a cluster time, so the position that counts is that of a later entry,
        // which changes nothing.
        self.pass(doc! { "appendOplogNote": 1, "data": { "test": "everything before has been applied" } }).await;
    }

    /// Waits until every link has reached the cluster time that its source answers a command with: first all uplinks,
    /// then all downlinks.
    async fn pass(&self, command: Document) {
        for link in ["uplink", "downlink"] {
            let mut times = HashMap::new();
            for (zone, _) in &self.topology {
                let source = if link == "uplink" { zone } else { HUB };
                if !times.contains_key(source) {
                    let reply = self.clients[source].database("admin").run_command(command.clone()).await.unwrap();
                    times.insert(source, reply.get_timestamp("operationTime").unwrap());
                }
                let time = times[source];
                eventually(&format!("{zone}'s {link} has applied {time}; {}", self.log()), async || {
                    let position = self.spoke_status(zone)[link]["position"].as_str().and_then(parse_time);
                    position >= Some(time)
                })
                .await;
            }
        }
    }

    /// Inserts a document of HOU's zone at HOU, and waits until DFW, which watches HOU, has it.
    pub async fn arrives_from_houston(&self, id: &str) {
        self.at("HOU").insert_one(doc! { "_id": id, "_pk": "HOU" }).await.unwrap();
        eventually(&format!("{id} is at DFW"), async || {
            self.at("DFW").find_one(doc! { "_id": id }).await.unwrap().is_some()
        })
        .await;
    }

    /// Creates the first synced collection at these servers, with pre-images.
    pub async fn keep_pre_images(&self, names: &[&str]) {
        for name in names {
            let collection = self.at(name);
            let options = doc! { "create": collection.name(), "changeStreamPreAndPostImages": { "enabled": true } };
            self.client(name).database(&collection.namespace().db).run_command(options).await.unwrap();
        }
    }

    /// Lets the hub refuse two documents with the same value of `u`.
    pub async fn refuse_the_same_u(&self) {
        let options = IndexOptions::builder().unique(true).sparse(true).build();
        let unique = IndexModel::builder().keys(doc! { "u": 1 }).options(options).build();
        self.at(HUB).create_index(unique).await.unwrap();
    }

    /// A figure of the program's memory in kB, by its name in `/proc/…/status`.
    pub fn memory(&self, figure: &str) -> u64 {
        let process = self.program.as_ref().unwrap().process().id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).unwrap();
        value.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The number of the program's open descriptors.
    pub fn descriptors(&self) -> usize {
        let process = self.program.as_ref().unwrap().process().id();
        std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
    }

    /// The documents of a zone at the hub or at a spoke, in the order of `_id`.
    pub async fn zone(&self, name: &str, number: usize, zone: &str) -> Vec<RawDocumentBuf> {
        let (database, collection) = self.namespaces[number].split_once('.').unwrap();
        let collection = self.clients[name].database(database).collection::<RawDocumentBuf>(collection);
        let found = collection.find(doc! { "_pk": zone }).sort(doc! { "_id": 1 }).await.unwrap();
        found.try_collect().await.unwrap()
    }

    /// Waits until every write so far has arrived, and compares every zone at the hub with each spoke that holds the
    /// zone, byte by byte.
    pub async fn assert_converged(&self) {
        // Usually the last event of every source is enough, and comes sooner than the note.
        self.pass(doc! { "ping": 1 }).await;
        if self.difference().await.is_some() {
            self.settle().await;
        }
        if let Some(difference) = self.difference().await {
            panic!("{difference}\n{}", self.log());
        }
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// The first difference between the hub and a spoke in a zone that the spoke holds.
    async fn difference(&self) -> Option<String> {
        for number in 0..self.namespaces.len() {
            for (owner, watch) in &self.topology {
                for zone in std::iter::once(owner).chain(watch) {
                    let (hub, spoke) = (self.zone(HUB, number, zone).await, self.zone(owner, number, zone).await);
                    if let Some(difference) = first_difference(&hub, &spoke) {
                        return Some(format!("zone {zone} at the hub and at {owner} differ{difference}"));
                    }
                }
            }
        }
        None
    }
}

/// Writes until the server has truncated its oplog, and then enlarges the oplog again.
async fn forget_the_beginning(node: &Node) {
    let client = node.client().await.unwrap();
    let (scratch, admin) = (client.database("scratch").collection::<Document>("scratch"), client.database("admin"));
    let earliest = async || {
        let status = admin.run_command(doc! { "serverStatus": 1, "oplog": 1 }).await.unwrap();
        status.get_document("oplog").unwrap().get_timestamp("earliestOptime").unwrap()
    };
    let (first, large) = (earliest().await, "x".repeat(8_000_000));
    eventually("the oplog is truncated", async || {
        scratch.replace_one(doc! {}, doc! { "x": &large, "n": bson::oid::ObjectId::new() }).upsert(true).await.unwrap();
        earliest().await > first
    })
    .await;
    admin.run_command(doc! { "replSetResizeOplog": 1, "size": 990.0 }).await.unwrap();
}

fn first_difference(one: &[RawDocumentBuf], other: &[RawDocumentBuf]) -> Option<String> {
    let differ = |(one, other): &(&RawDocumentBuf, &RawDocumentBuf)| one.as_bytes() != other.as_bytes();
    let read = |raw: &RawDocumentBuf| Document::try_from(raw.clone());
    match one.iter().zip(other).find(differ) {
        Some((one, other)) => Some(format!(":\n{:?}\n{:?}", read(one), read(other))),
        None if one.len() != other.len() => Some(format!(" in number: {} and {}", one.len(), other.len())),
        None => None,
    }
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let (time, increment) = text.split_once('.')?;
    Some(Timestamp { time: time.parse().ok()?, increment: increment.parse().ok()? })
}

async fn start_all(number: usize, options: &Options) -> Vec<Node> {
    let starting = (0..number).map(async |number| Node::start(&number.to_string(), options.clone()).await);
    futures_util::future::try_join_all(starting).await.unwrap()
}
