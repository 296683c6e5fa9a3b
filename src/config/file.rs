//! Reads `spokes.toml`, and reports all problems of the file together, with line numbers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use super::environment::Variables;
use super::table::{At, Reader, Table};
use super::uri::Uri;
use super::{Cluster, Config, Http, Invalid, Log, LogFormat, Moves, OnUnwatch, Source, Spoke, Synced, Verify, zone};
use crate::rules::names::{Namespace, Zone};

/// Shortest token for HTTP, in bytes: a shorter one can be guessed.
const LEAST_TOKEN: usize = 16;

/// Reads a file. Paths in the file are relative to the file's folder. An error lists all problems of the file, with
/// line numbers.
pub(crate) fn read(path: &Path, variables: &Variables) -> Result<Config, Invalid> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| Invalid::whole(&shown, format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
        let message = "this is not UTF-8 text".to_owned();
        Invalid::new(&shown, vec![super::Problem { line: Some(line), message }])
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse(&text, folder, variables)
        .map(|config| Config { source: Source::File(path.to_owned()), text: super::hash(text.as_bytes()), ..config })
        .map_err(|problems| Invalid::new(&shown, problems))
}

fn parse(text: &str, folder: &Path, variables: &Variables) -> Result<Config, Vec<super::Problem>> {
    let (mut reader, mut root) = Reader::parse(text, variables);
    if !reader.problems.is_empty() {
        // After a syntax error the other values may differ from the author's intention: report no further problems.
        return Err(reader.problems);
    }
    // The sections take the known keys; `finish` reports the remaining keys.
    let mut hub = reader.section(&mut root, "hub");
    let hub_uri = uri(&mut reader, &mut hub, folder);
    reader.finish(hub);
    let sync = sync(&mut reader, &mut root);
    let http = http(&mut reader, &mut root, folder);
    let log = log(&mut reader, &mut root, folder);
    let verify = verify(&mut reader, &mut root);
    let cluster = cluster(&mut reader, &mut root);
    let spokes = spokes(&mut reader, &mut root, folder);
    let reload_on_change = reader.boolean(&mut root, "reload_on_change").unwrap_or(false);
    reader.finish(root);
    unique(&mut reader, hub_uri.as_ref(), &spokes);
    match hub_uri {
        Some(hub) if reader.problems.is_empty() => Ok(Config {
            hub: hub.value,
            spokes: spokes.into_iter().filter_map(RawSpoke::finish).collect(),
            sync,
            http,
            log,
            verify,
            cluster,
            reload_on_change,
            source: Source::Environment,
            text: 0,
        }),
        _ => Err(reader.problems),
    }
}

/// A spoke, possibly without a valid zone or connection string.
struct RawSpoke {
    zone: Option<At<Zone>>,
    uri: Option<At<Uri>>,
    watch: Vec<Zone>,
    on_unwatch: OnUnwatch,
    moves: Moves,
}

impl RawSpoke {
    fn finish(self) -> Option<Spoke> {
        let Self { zone, uri, watch, on_unwatch, moves } = self;
        Some(Spoke { zone: zone?.value, uri: uri?.value, watch, on_unwatch, moves })
    }
}

fn spokes<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>, folder: &Path) -> Vec<RawSpoke> {
    let tables = reader.sections(root, "spoke");
    if tables.is_empty() {
        reader.problem(&root.span.clone(), "there is no spoke: add a [[spoke]] with zone and uri".to_owned());
    }
    tables.into_iter().map(|table| spoke(reader, table, folder)).collect()
}

fn spoke<'t>(reader: &mut Reader<'t>, mut table: Table<'t>, folder: &Path) -> RawSpoke {
    // The zone comes first, because further messages name the spoke by the zone.
    let before = reader.problems.len();
    let own = match reader.text(&mut table, "zone") {
        Some(name) => {
            table.name = format!("spoke {}", name.value);
            checked(reader, &table.name, name, zone)
        }
        None => {
            if reader.problems.len() == before {
                let message = format!("{}: zone is missing: the zone that the spoke owns", table.name);
                reader.problem(&table.span.clone(), message);
            }
            None
        }
    };
    let uri = uri(reader, &mut table, folder);
    let mut watch: Vec<Zone> = Vec::new();
    for name in reader.texts(&mut table, "watch").into_iter().flat_map(|names| names.value) {
        let Some(At { value, span }) = checked(reader, &table.name, name, zone) else { continue };
        if own.as_ref().is_some_and(|own| own.value == value) {
            reader.problem(&span, format!("{}: it watches its own zone, which it has anyway: remove it", table.name));
        } else if watch.contains(&value) {
            reader.problem(&span, format!("{}: it watches {value} twice: remove one", table.name));
        } else {
            watch.push(value);
        }
    }
    let on_unwatch = reader.text(&mut table, "on_unwatch");
    let on_unwatch = on_unwatch.and_then(|text| checked(reader, &table.name, text, on_unwatch_policy));
    let moves = reader.text(&mut table, "moves");
    let moves = moves.and_then(|text| checked(reader, &table.name, text, moves_policy));
    reader.finish(table);
    let on_unwatch = on_unwatch.map(|policy| policy.value).unwrap_or_default();
    let moves = moves.map(|policy| policy.value).unwrap_or_default();
    RawSpoke { zone: own, uri, watch, on_unwatch, moves }
}

/// Reads a connection string: `uri`, or the content of the file `uri_file`.
fn uri<'t>(reader: &mut Reader<'t>, table: &mut Table<'t>, folder: &Path) -> Option<At<Uri>> {
    let text = secret(reader, table, ["uri", "uri_file"], folder)?;
    if text.is_none() {
        let message =
            format!("{}: uri is missing: give a connection string as uri, or a file with it as uri_file", table.name);
        reader.problem(&table.span.clone(), message);
    }
    let (At { value, span }, file) = text?;
    // A path in the connection string is relative to the file that names it.
    let folder = file.as_deref().and_then(Path::parent).unwrap_or(folder).to_owned();
    match Uri::parse(&value).and_then(|uri| uri.with_files(&folder, file)) {
        Ok(value) => Some(At { value, span }),
        Err(problems) => {
            for problem in problems {
                reader.problem(&span, format!("{}: uri: {problem}", table.name));
            }
            None
        }
    }
}

/// Reads a text from a key, or from the file named by another key, with that file's path. Returns `None` after a
/// problem, `Some(None)` if neither key is present.
#[expect(clippy::option_option, reason = "a problem, absent, present")]
fn secret<'t>(
    reader: &mut Reader<'t>,
    table: &mut Table<'t>,
    [key, file_key]: [&'static str; 2],
    folder: &Path,
) -> Option<Option<(At<String>, Option<PathBuf>)>> {
    let before = reader.problems.len();
    let (text, file) = (reader.text(table, key), reader.text(table, file_key));
    if reader.problems.len() > before {
        return None;
    }
    match (text, file) {
        (text, None) => Some(text.map(|text| (text, None))),
        (Some(_), Some(file)) => {
            reader.problem(&file.span, format!("{}: give {key} or {file_key}, not both", table.name));
            None
        }
        (None, Some(file)) => {
            let path = folder.join(&file.value);
            match std::fs::read_to_string(&path) {
                Ok(text) => Some(Some((At { value: text.trim().to_owned(), span: file.span }, Some(path)))),
                Err(error) => {
                    let message = format!("{}: {file_key}: {} cannot be read: {error}", table.name, path.display());
                    reader.problem(&file.span, message);
                    None
                }
            }
        }
    }
}

fn sync<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>) -> Synced {
    let mut table = reader.section(root, "sync");
    let mut sync = Synced::default();
    // Namespaces: at least one, each once.
    if let Some(names) = reader.texts(&mut table, "namespaces") {
        if names.value.is_empty() {
            reader.problem(&names.span, "[sync]: namespaces is empty: name at least one collection".to_owned());
        }
        sync.namespaces.clear();
        for name in names.value {
            let Some(At { value, span }) = checked(reader, "[sync]", name, Namespace::parse) else { continue };
            if sync.namespaces.contains(&value) {
                reader.problem(&span, format!("[sync]: namespaces names {value} twice: remove one"));
            } else {
                sync.namespaces.push(value);
            }
        }
    }
    if let Some(key) = reader.text(&mut table, "partition_key")
        && let Some(key) = checked(reader, "[sync]", key, partition_key)
    {
        sync.partition_key = key.value;
    }
    // The metadata database must not hold synced collections.
    if let Some(name) = reader.text(&mut table, "metadata_database")
        && let Some(name) =
            checked(reader, "[sync]", name, |name| Namespace::parse(&format!("{name}.a")).map(|ns| ns.database))
    {
        if sync.namespaces.iter().any(|ns| ns.database == name.value) {
            let message = "[sync]: metadata_database must be a database without synced namespaces".to_owned();
            reader.problem(&name.span, message);
        }
        sync.metadata_database = name.value;
    }
    if let Some(number) = reader.number(&mut table, "catch_up_streams", 1..=100) {
        sync.catch_up_streams = number.value;
    }
    if let Some(allowed) = reader.boolean(&mut table, "allow_shared_replica_sets") {
        sync.allow_shared_replica_sets = allowed;
    }
    reader.finish(table);
    sync
}

fn partition_key(name: &str) -> Result<String, String> {
    if name.is_empty() || name == "_id" || name.starts_with('$') || name.contains(['.', '\0']) {
        return Err(format!("{name:?} cannot be the partition key: name one top-level field, not _id"));
    }
    Ok(name.to_owned())
}

fn http<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>, folder: &Path) -> Http {
    let mut table = reader.section(root, "http");
    let mut http = Http::default();
    let listen = reader.text(&mut table, "listen").and_then(|listen| {
        checked(reader, "[http]", listen, |text| {
            let advice = "is not an address to listen on: write IP:port, such as 127.0.0.1:8080";
            text.parse::<SocketAddr>().map_err(|_| format!("{text:?} {advice}"))
        })
    });
    let token = secret(reader, &mut table, ["token", "token_file"], folder).flatten();
    if let Some((token, _)) = token {
        if token.value.len() < LEAST_TOKEN {
            let advice = "openssl rand -hex 16 makes a good one";
            let message = format!("[http]: the token has fewer than {LEAST_TOKEN} bytes: {advice}");
            reader.problem(&token.span, message);
        }
        http.token = Some(SecretString::from(token.value));
    }
    if let Some(At { value, span }) = listen {
        if !value.ip().is_loopback() && http.token.is_none() {
            let message = format!(
                "[http]: {value} can be reached from other machines: set token or token_file, or listen on 127.0.0.1"
            );
            reader.problem(&span, message);
        }
        http.listen = value;
    }
    reader.finish(table);
    http
}

fn log<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>, folder: &Path) -> Log {
    let mut table = reader.section(root, "log");
    let mut log = Log::default();
    if let Some(level) = reader.text(&mut table, "level")
        && let Some(level) = checked(reader, "[log]", level, level_filter)
    {
        log.level = level.value;
    }
    if let Some(format) = reader.text(&mut table, "format")
        && let Some(format) = checked(reader, "[log]", format, log_format)
    {
        log.format = format.value;
    }
    if let Some(directory) = reader.text(&mut table, "directory") {
        log.directory = Some(folder.join(directory.value));
    }
    reader.finish(table);
    log
}

fn verify<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>) -> Verify {
    const YEAR: usize = 366 * 24;
    let mut table = reader.section(root, "verify");
    let mut number = |key, most| {
        let number = reader.number(&mut table, key, 0..=most).map_or(0, |number| number.value);
        u32::try_from(number).unwrap_or(u32::MAX)
    };
    let (every_hours, documents_per_second) = (number("every_hours", YEAR), number("documents_per_second", 10_000_000));
    let secondary = reader.boolean(&mut table, "secondary").unwrap_or(false);
    reader.finish(table);
    Verify { every_hours, documents_per_second, secondary }
}

fn cluster<'t>(reader: &mut Reader<'t>, root: &mut Table<'t>) -> Cluster {
    let mut table = reader.section(root, "cluster");
    let mut cluster = Cluster::default();
    if let Some(seconds) = reader.number(&mut table, "lease_seconds", 3..=300) {
        cluster.lease = Duration::from_secs(seconds.value as u64);
    }
    cluster.expected_members = reader.number(&mut table, "expected_members", 1..=1_000).map(|number| number.value);
    reader.finish(table);
    cluster
}

fn level_filter(name: &str) -> Result<LevelFilter, String> {
    match name {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!("level {name:?} is none of error, warn, info, debug, trace")),
    }
}

fn on_unwatch_policy(name: &str) -> Result<OnUnwatch, String> {
    match name {
        "keep" => Ok(OnUnwatch::Keep),
        "purge" => Ok(OnUnwatch::Purge),
        _ => Err(format!("on_unwatch {name:?} is neither keep nor purge")),
    }
}

fn moves_policy(name: &str) -> Result<Moves, String> {
    match name {
        "allow" => Ok(Moves::Allow),
        "refuse" => Ok(Moves::Refuse),
        _ => Err(format!("moves {name:?} is neither allow nor refuse")),
    }
}

fn log_format(name: &str) -> Result<LogFormat, String> {
    match name {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("format {name:?} is neither text nor json")),
    }
}

/// Checks that each zone has a single owner, and each replica set a single role.
fn unique(reader: &mut Reader<'_>, hub: Option<&At<Uri>>, spokes: &[RawSpoke]) {
    let mut zones: HashMap<&Zone, ()> = HashMap::new();
    let mut hosts: HashMap<&str, String> = hub.iter().map(|hub| (hub.value.hosts(), "the hub".to_owned())).collect();
    for spoke in spokes {
        let Some(zone) = &spoke.zone else { continue };
        if zones.insert(&zone.value, ()).is_some() {
            reader.problem(
                &zone.span,
                format!("spoke {}: another spoke owns this zone: each zone has one owner", zone.value),
            );
        }
        let Some(uri) = &spoke.uri else { continue };
        if let Some(other) = hosts.insert(uri.value.hosts(), format!("spoke {}", zone.value)) {
            let message =
                format!("spoke {}: its uri has the hosts of {other}: each has a replica set of its own", zone.value);
            reader.problem(&uri.span, message);
        }
    }
}

/// Parses a text, or reports a problem at the text's place.
fn checked<T>(
    reader: &mut Reader<'_>,
    table: &str,
    text: At<String>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<At<T>> {
    match parse(&text.value) {
        Ok(value) => Some(At { value, span: text.span }),
        Err(message) => {
            reader.problem(&text.span, format!("{table}: {message}"));
            None
        }
    }
}
