//! The configuration: reads `spokes.toml`, or the environment of the reference container, into a valid [`Config`].
//!
//! - [`file`]: reads `spokes.toml`; [`environment`]: reads the reference container's four variables
//! - [`table`]: a TOML table that collects all problems, each with its line
//! - [`uri`]: connection strings, which never print their password
//!
//! Promise: [`load`] returns a valid [`Config`], or an [`Invalid`] with all problems of the file.

pub mod environment;
pub(crate) mod file;
mod table;
pub mod uri;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tracing::level_filters::LevelFilter;

use crate::rules::names::{Namespace, Zone};
use uri::Uri;

/// Name of the configuration file if the command line names none.
pub const DEFAULT_FILE: &str = "spokes.toml";

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The hub's connection string.
    pub hub: Uri,
    /// The spokes in the order of the file; at least one.
    pub spokes: Vec<Spoke>,
    /// Collections to keep in step, and related settings.
    pub sync: Synced,
    /// The HTTP interface.
    pub http: Http,
    /// Level, format and destination of the log.
    pub log: Log,
    /// Settings of verifications.
    pub verify: Verify,
    /// Settings of several processes that share the spokes.
    pub cluster: Cluster,
    /// True to reload after every change of the file, not only on SIGHUP.
    pub reload_on_change: bool,
    /// Origin of the configuration, for reloads.
    pub source: Source,
    /// A hash of the file's text; 0 without a file.
    text: u64,
}

impl Config {
    /// The files with credentials that connection strings come from or name.
    pub fn credentials_files(&self) -> impl Iterator<Item = &Path> {
        self.spokes.iter().map(|spoke| &spoke.uri).chain([&self.hub]).flat_map(Uri::files)
    }

    /// Identifies what the sync depends on: hub, collections, spokes and their zones, but no address of this machine,
    /// no log and no credentials. Two members of a cluster should have the same.
    pub fn fingerprint(&self) -> String {
        let mut text = format!("{} {:?}", self.hub.hosts(), self.sync);
        for Spoke { zone, uri, watch, on_unwatch, moves } in &self.spokes {
            text += &format!("\n{} {} {watch:?} {on_unwatch:?} {moves:?}", zone.as_str(), uri.hosts());
        }
        Sha256::digest(text).iter().take(8).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// True if both were read from the same text, so that only credentials may differ.
    pub fn has_the_text_of(&self, other: &Self) -> bool {
        self.text == other.text
    }

    /// Returns the names of the sections that differ from `other` and take effect only at the next start.
    pub fn fixed_sections_that_differ(&self, other: &Self) -> Vec<&'static str> {
        let token = |config: &Self| config.http.token.as_ref().map(|token| token.expose_secret().to_owned());
        let sections = [
            ("hub", self.hub.hosts() != other.hub.hosts()),
            ("sync", self.sync != other.sync),
            ("http", self.http.listen != other.http.listen || token(self) != token(other)),
            ("log", self.log != other.log),
            ("verify", self.verify.every_hours != other.verify.every_hours),
            ("cluster", self.cluster.lease != other.cluster.lease),
            ("reload_on_change", self.reload_on_change != other.reload_on_change),
        ];
        sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// The origin of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The environment variables of the reference container.
    Environment,
}

/// One edge replica set.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoke {
    /// The zone that the spoke owns.
    pub zone: Zone,
    /// The spoke's connection string.
    pub uri: Uri,
    /// The zones that the spoke watches: zones of other spokes, or of the hub.
    pub watch: Vec<Zone>,
    /// Treatment of a zone's documents after the zone is removed from `watch`.
    pub on_unwatch: OnUnwatch,
    /// Treatment of a document of the zone that an application of the spoke moves into another zone.
    pub moves: Moves,
}

/// Treatment of a document that an application of a spoke moves out of the spoke's zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moves {
    /// The document moves at the hub as well.
    #[default]
    Allow,
    /// The document stays in its zone at the hub, and the move becomes a dead letter.
    Refuse,
}

/// Treatment of a zone's documents at a spoke that no longer watches the zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnwatch {
    /// Leave the documents at the spoke.
    #[default]
    Keep,
    /// Delete the documents at the spoke.
    Purge,
}

/// The collections to keep in step, and related settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The collections, at least one.
    pub namespaces: Vec<Namespace>,
    /// The top-level field that names a document's zone.
    pub partition_key: String,
    /// The database, on every server, that holds checkpoints, tags and dead letters.
    pub metadata_database: String,
    /// Spokes that may catch up at the same time, each on an own change stream of the hub.
    pub catch_up_streams: usize,
    /// True to let several spokes be one replica set, for load tests: each sees the documents of all of them.
    pub allow_shared_replica_sets: bool,
}

impl Default for Synced {
    fn default() -> Self {
        Self {
            namespaces: vec![Namespace { database: "messages".to_owned(), collection: "messages".to_owned() }],
            partition_key: "_pk".to_owned(),
            metadata_database: "_syncmetadata".to_owned(),
            catch_up_streams: 4,
            allow_shared_replica_sets: false,
        }
    }
}

/// Settings of verifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Interval of verifications in the running process, in hours; 0: on request only.
    pub every_hours: u32,
    /// Upper limit of documents read per second from each side; 0: no limit.
    pub documents_per_second: u32,
    /// True to allow reads from secondaries.
    pub secondary: bool,
}

/// Settings of several processes that share the spokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Time within which the spokes of a dead process stream elsewhere.
    pub lease: Duration,
    /// Number of processes that should be alive, for an alert.
    pub expected_members: Option<usize>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), expected_members: None }
    }
}

/// The HTTP interface.
#[derive(Clone, Debug)]
pub struct Http {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Bearer token that requests must carry. Present unless the listener is on the loopback interface.
    pub token: Option<SecretString>,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), token: None }
    }
}

/// Format of log lines on the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Level, format and destination of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least level of the lines that are written.
    pub level: LevelFilter,
    /// Format of the lines on the console.
    pub format: LogFormat,
    /// Folder for one rotating file per actor; `None`: no files.
    pub directory: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, format: LogFormat::Text, directory: None }
    }
}

/// All problems of an invalid configuration.
#[derive(Debug)]
pub struct Invalid {
    source: String,
    problems: Vec<Problem>,
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            let newline = if number == 0 { "" } else { "\n" };
            match problem.line {
                Some(line) => write!(f, "{newline}{}:{line}: {}", self.source, problem.message)?,
                None => write!(f, "{newline}{}: {}", self.source, problem.message)?,
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Problem {
    line: Option<usize>,
    message: String,
}

/// Reads the configuration: from the named file, else from [`DEFAULT_FILE`] if present, else from the environment.
///
/// # Errors
/// All problems of the file, each with its line, or all wrong variables.
pub fn load(named: Option<&Path>, variables: &environment::Variables) -> Result<Config, Invalid> {
    let file = named.unwrap_or(Path::new(DEFAULT_FILE));
    if named.is_none() && !file.exists() {
        if variables.describe_a_spoke() {
            return environment::read(variables);
        }
        let message =
            "there is no such file: give one with --config, or set ZONENAME, WATCHZONES, CONSTREDGE and CONSTRFAR";
        return Err(Invalid::whole(DEFAULT_FILE, message.to_owned()));
    }
    file::read(file, variables)
}

impl Invalid {
    fn new(source: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        Self { source: source.to_owned(), problems }
    }

    pub(crate) fn whole(source: &str, message: String) -> Self {
        Self::new(source, vec![Problem { line: None, message }])
    }
}

/// A hash that tells the present content of a file from a former one.
fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// Checks the name of a zone. The error describes the problem.
///
/// Actors, log files and URLs carry the names of zones, so a name excludes characters with a meaning in paths and URLs.
fn zone(name: &str) -> Result<Zone, String> {
    let forbidden = |c: char| c.is_control() || "/\\:?#%".contains(c);
    if name.is_empty() {
        Err("a zone's name cannot be empty".to_owned())
    } else if name.len() > 100 {
        Err(format!("a zone's name has at most 100 bytes, this one has {}", name.len()))
    } else if name.trim() != name || name.starts_with('.') || name.contains(forbidden) {
        Err(format!("{name:?} cannot name a zone: leave out / \\ : ? # %, a leading dot, and spaces at either end"))
    } else {
        Ok(Zone::new(name))
    }
}
