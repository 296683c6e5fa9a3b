//! `make demo`: starts the servers named in `spokes.toml`, spokesync between them, and an application in every zone. A
//! table shows every three seconds the number of documents at each side. Ctrl-C ends everything.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bson::doc;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use mongodb::Client;
use spokesync::config::Config;
use spokesync::config::environment::Variables;
use testbed::node::{Node, Options};
use testbed::process::Process;
use testbed::program::Program;
use tokio::signal::unix::{SignalKind, signal};

/// Changes per second, in every zone.
const RATE: &str = "25";

/// Time between two tables.
const INTERVAL: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<()> {
    let config = spokesync::config::load(Some(Path::new("spokes.toml")), &Variables::of_this_process())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        shown = run(&config) => shown,
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn run(config: &Config) -> Result<()> {
    let places = places(config)?;
    println!("starting a hub and {} spokes, each a replica set of its own …", config.spokes.len());
    let starting = places.iter().map(async |place| Node::start(&place.name, place.options.clone()).await);
    let nodes = futures_util::future::try_join_all(starting).await.context("the ports must be free")?;

    let folder = std::env::temp_dir();
    let log = folder.join(format!("spokesync-demo-{}.log", std::process::id()));
    let programs =
        std::env::current_exe()?.parent().and_then(Path::parent).context("the demo is in no folder")?.to_owned();
    println!("starting spokesync; its log is {}", log.display());
    let mut command = Command::new(programs.join("spokesync"));
    command.args(["run", "--config", "spokes.toml"]);
    let mut program = Program::start(&command, &config.http.listen.to_string(), &log)?;
    program.ready(Duration::from_secs(30)).await?;

    let mut applications = Vec::new();
    for place in places.iter().filter(|place| place.name != "hub") {
        applications.push(application(&programs, place, &log)?);
    }
    println!(
        "vehicles write {RATE} messages a second in every zone; the dashboard is at http://{}/\n",
        config.http.listen
    );

    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.client().await?);
    }
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        println!("{}\n", table(config, &places, &clients).await?);
    }
}

/// A server named in `spokes.toml`.
struct Place {
    name: String,
    uri: String,
    options: Options,
}

/// The hub, and then the spokes.
fn places(config: &Config) -> Result<Vec<Place>> {
    let spokes = config.spokes.iter().map(|spoke| (spoke.zone.to_string(), &spoke.uri));
    let all = std::iter::once(("hub".to_owned(), &config.hub)).chain(spokes);
    all.map(|(name, uri)| {
        let port = uri.hosts().rsplit(':').next().and_then(|port| port.parse().ok());
        let replica_set = uri.expose().split("replicaSet=").nth(1).map(str::to_owned);
        let options = Options {
            port: Some(port.context("the connection string needs a port")?),
            replica_set,
            ..Options::default()
        };
        Ok(Place { name, uri: uri.expose().to_owned(), options })
    })
    .collect()
}

fn application(programs: &Path, place: &Place, log: &Path) -> Result<Process> {
    let mut command = Command::new(programs.join("examples/vehicles"));
    command.args(["--uri", &place.uri, "--zone", &place.name, "--rate", RATE]);
    Process::start(&command, log)
}

/// The number of documents at each side, by zone.
async fn table(config: &Config, places: &[Place], clients: &[Client]) -> Result<Table> {
    let namespace = &config.sync.namespaces[0];
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    let zones: Vec<&str> = config.spokes.iter().map(|spoke| spoke.zone.as_str()).collect();
    let mut header = vec!["documents at".to_owned()];
    header.extend(zones.iter().map(|zone| format!("of zone {zone}")));
    table.set_header(header);
    for (place, client) in places.iter().zip(clients) {
        let collection = client.database(&namespace.database).collection::<bson::Document>(&namespace.collection);
        let mut row = vec![place.name.clone()];
        for zone in &zones {
            row.push(collection.count_documents(doc! { &config.sync.partition_key: zone }).await?.to_string());
        }
        table.add_row(row);
    }
    Ok(table)
}
