//! What the program is to do: `spokes.toml`, or the environment of the reference container, as a valid [`Config`].
//!
//! - [`file`]: reads `spokes.toml`; [`environment`]: reads the four variables
//! - [`table`]: a TOML table whose every problem is collected with its line
//! - [`uri`]: connection strings, which never print their password
//!
//! Promise: a [`Config`] is valid, or there is an [`Invalid`] with every problem of the file.

pub mod environment;
pub(crate) mod file;
mod table;
pub mod uri;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tracing::level_filters::LevelFilter;

use crate::rules::names::{Namespace, Zone};
use uri::Uri;

/// The file that is read where no other is named.
pub const DEFAULT_FILE: &str = "spokes.toml";

/// Everything the program is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The hub's connection string.
    pub hub: Uri,
    /// The spokes, by zone; at least one.
    pub spokes: Vec<Spoke>,
    /// What is kept in step, and how.
    pub sync: Synced,
    /// The HTTP interface.
    pub http: Http,
    /// Where the log goes.
    pub log: Log,
    /// How hub and spokes are compared.
    pub verify: Verify,
    /// Whether the file is read again whenever it changes, not only on SIGHUP.
    pub reload_on_change: bool,
    /// Where this was read, for messages.
    pub source: Source,
}

impl Config {
    /// The sections that only take effect at a start, and are not the same in both.
    pub fn fixed_sections_that_differ(&self, other: &Self) -> Vec<&'static str> {
        let token = |config: &Self| config.http.token.as_ref().map(|token| token.expose_secret().to_owned());
        let sections = [
            ("hub", self.hub != other.hub),
            ("sync", self.sync != other.sync),
            ("http", self.http.listen != other.http.listen || token(self) != token(other)),
            ("log", self.log != other.log),
            ("verify", self.verify.every_hours != other.verify.every_hours),
            ("reload_on_change", self.reload_on_change != other.reload_on_change),
        ];
        sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// Where a configuration comes from.
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
    /// The zone that it owns.
    pub zone: Zone,
    /// Its connection string.
    pub uri: Uri,
    /// The zones that it watches: other spokes', or the hub's own.
    pub watch: Vec<Zone>,
    /// What becomes of the documents of a zone that it watches no longer.
    pub on_unwatch: OnUnwatch,
}

/// What becomes of a zone's documents at a spoke that watches it no longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnwatch {
    /// They stay as they are.
    #[default]
    Keep,
    /// They are deleted at the spoke.
    Purge,
}

/// What is kept in step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// The collections, at least one.
    pub namespaces: Vec<Namespace>,
    /// The top-level field that names a document's zone.
    pub partition_key: String,
    /// The database, on every server, that holds checkpoints, tags and dead letters.
    pub metadata_database: String,
    /// How many spokes may catch up at once, each on a change stream of its own at the hub.
    pub catch_up_streams: usize,
}

impl Default for Synced {
    fn default() -> Self {
        Self {
            namespaces: vec![Namespace { database: "messages".to_owned(), collection: "messages".to_owned() }],
            partition_key: "_pk".to_owned(),
            metadata_database: "_syncmetadata".to_owned(),
            catch_up_streams: 4,
        }
    }
}

/// How hub and spokes are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Everything is compared so often, in hours, while the process runs; 0: only when somebody asks for it.
    pub every_hours: u32,
    /// At most so many documents a second are read from each side; 0: as fast as it goes.
    pub documents_per_second: u32,
    /// Whether secondaries may be read.
    pub secondary: bool,
}

/// The HTTP interface.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What callers must bring as a bearer token. Always there unless the listener is on the loopback interface.
    pub token: Option<SecretString>,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), token: None }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Lines below this level are not written.
    pub level: LevelFilter,
    /// How lines look on the console.
    pub format: LogFormat,
    /// The folder for one rotating file per actor, or none.
    pub directory: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, format: LogFormat::Text, directory: None }
    }
}

/// A configuration that cannot be used: every problem of it.
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

/// One thing that is wrong, and what to do about it.
#[derive(Debug)]
struct Problem {
    line: Option<usize>,
    message: String,
}

/// Reads the configuration: the file if it is named or there, else the environment.
///
/// # Errors
/// Names every problem of the file, each with its line, or every variable that is wrong.
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

    fn whole(source: &str, message: String) -> Self {
        Self::new(source, vec![Problem { line: None, message }])
    }
}

/// A zone's name as a zone, or what is wrong with it.
///
/// Zones name actors, log files and URLs, and so leave out the characters that would be read as something else there.
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
