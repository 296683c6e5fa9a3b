//! All servers of the configuration, for commands that connect to the servers themselves.

use std::sync::Arc;

use crate::config::Config;
use crate::mongo::endpoint::Endpoint;

/// The hub and the spokes, by name, each with at most this number of connections.
pub(super) fn endpoints(config: &Config, connections: u32) -> impl Iterator<Item = (String, Endpoint)> {
    let sync = Arc::new(config.sync.clone());
    let spokes = config.spokes.iter().map(|spoke| (format!("spoke {}", spoke.zone), spoke.uri.clone()));
    let servers = std::iter::once(("hub".to_owned(), config.hub.clone())).chain(spokes);
    servers.map(move |(name, uri)| {
        let endpoint = Endpoint::new(&name, uri, sync.clone(), connections);
        (name, endpoint)
    })
}
