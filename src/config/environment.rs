//! Environment variables: those that `spokes.toml` refers to, and the four of the reference container.

use std::collections::HashMap;

use super::uri::Uri;
use super::{Cluster, Config, Http, Invalid, Log, Moves, OnUnwatch, Problem, Source, Spoke, Synced, Verify, zone};

/// A copy of the environment variables, made once.
#[derive(Clone, Default)]
pub struct Variables(HashMap<String, String>);

impl Variables {
    /// Copies the variables of this process. A value that is not UTF-8 counts as not set.
    pub fn of_this_process() -> Self {
        let text =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self(text.collect())
    }

    /// Returns a variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// True if any of the reference container's variables is set.
    pub fn describe_a_spoke(&self) -> bool {
        [ZONE, WATCH, EDGE, FAR].iter().any(|name| self.get(name).is_some())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Variables {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

const ZONE: &str = "ZONENAME";
const WATCH: &str = "WATCHZONES";
const EDGE: &str = "CONSTREDGE";
const FAR: &str = "CONSTRFAR";

/// Reads the reference container's variables: a configuration with one spoke, and defaults for all else.
///
/// # Errors
/// Every missing or wrong variable, by name.
pub fn read(variables: &Variables) -> Result<Config, Invalid> {
    let mut problems = Vec::new();
    let mut problem = |name: &str, message: String| {
        problems.push(Problem { line: None, message: format!("{name}: {message}") });
    };
    let mut uri = |name: &str| match variables.get(name).map(Uri::parse) {
        Some(Ok(uri)) => Some(uri),
        Some(Err(found)) => {
            found.into_iter().for_each(|message| problem(name, message));
            None
        }
        None => {
            problem(name, "not set; it holds a connection string".to_owned());
            None
        }
    };
    let (hub, edge) = (uri(FAR), uri(EDGE));
    let own = match variables.get(ZONE).map(|name| zone(name.trim())) {
        Some(Ok(zone)) => Some(zone),
        Some(Err(message)) => {
            problem(ZONE, message);
            None
        }
        None => {
            problem(ZONE, "not set; it names the zone of the edge".to_owned());
            None
        }
    };
    let mut watch = Vec::new();
    let names = variables.get(WATCH).unwrap_or_default().split(',').map(str::trim);
    for name in names.filter(|name| !name.is_empty()) {
        match zone(name) {
            // Deployments of the reference container often list the own zone or a zone twice. Neither changes anything.
            Ok(zone) if Some(&zone) == own.as_ref() || watch.contains(&zone) => {}
            Ok(zone) => watch.push(zone),
            Err(message) => problem(WATCH, message),
        }
    }
    if hub.is_some() && hub == edge {
        problem(EDGE, format!("the same as {FAR}: the edge and the hub must be two replica sets"));
    }
    match (own, hub, edge) {
        (Some(zone), Some(hub), Some(uri)) if problems.is_empty() => Ok(Config {
            hub,
            spokes: vec![Spoke { zone, uri, watch, on_unwatch: OnUnwatch::default(), moves: Moves::default() }],
            sync: Synced::default(),
            http: Http::default(),
            log: Log::default(),
            verify: Verify::default(),
            cluster: Cluster::default(),
            reload_on_change: false,
            source: Source::Environment,
            text: 0,
        }),
        _ => Err(Invalid::new("environment", problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: [(&str, &str); 4] =
        [(ZONE, "DFW"), (WATCH, "HOU, BOS,,DFW"), (EDGE, "mongodb://edge"), (FAR, "mongodb://far")];

    #[test]
    fn the_four_variables_are_one_spoke() {
        let config = read(&VALID.into()).expect("valid");
        let spoke = &config.spokes[0];
        assert_eq!((spoke.zone.as_str(), spoke.uri.hosts(), config.hub.hosts()), ("DFW", "edge:27017", "far:27017"));
        assert_eq!(spoke.watch.iter().map(|zone| zone.as_str()).collect::<Vec<_>>(), ["HOU", "BOS"]);
        assert_eq!(config.sync, Synced::default());
    }

    #[test]
    fn every_variable_that_is_wrong_is_named() {
        let shown = read(&[(ZONE, ""), (WATCH, "a/b"), (EDGE, "edge")].into()).expect_err("invalid").to_string();
        for expected in ["ZONENAME: ", "WATCHZONES: ", "CONSTREDGE: ", "CONSTRFAR: not set"] {
            assert!(shown.contains(expected), "{expected:?} is missing in:\n{shown}");
        }
        let shown = read(&[(ZONE, "DFW"), (EDGE, "mongodb://a"), (FAR, "mongodb://a")].into()).expect_err("invalid");
        assert!(shown.to_string().contains("two replica sets"), "{shown}");
    }
}
