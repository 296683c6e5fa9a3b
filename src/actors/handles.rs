//! The objects that the actors share with the HTTP interface and the commands: status board, fan-out, hub, and spokes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::cluster::birth;
use crate::cluster::desk::Desk;
use crate::config::{self, Config};
use crate::link;
use crate::link::hub::fanout::Fanout;
use crate::link::servers::ReplicaSets;
use crate::mongo::endpoint::Endpoint;
use crate::mongo::metadata::members::Card;
use crate::observe::status::Board;
use crate::rules::names::Zone;
use crate::rules::route::Routes;

/// Commands of a link at the same time at either server: the transaction, the change stream, and further reads.
const CONNECTIONS_PER_LINK: u32 = 4;

/// Spokes that reloads may add before connections to the hub become scarce. The size of the hub's pool is fixed at the
/// start.
const MORE_SPOKES: u32 = 64;

/// Limit of links that start at the same time: each reads sessions and checkpoints at the hub.
const STARTING_LINKS: usize = 8;

/// Shared handles. A clone refers to the same objects.
#[derive(Clone)]
pub(crate) struct Handles {
    pub(crate) board: Arc<Board>,
    pub(super) fanout: Arc<Fanout>,
    pub(crate) hub: Arc<Endpoint>,
    /// What the coordinator tells the membership.
    pub(super) desk: Arc<Desk>,
    spokes: Arc<Mutex<HashMap<Zone, Arc<link::Shared>>>>,
    starting: Arc<Semaphore>,
    sets: Arc<ReplicaSets>,
    /// The name of the process in checkpoints. A process that lost a link shows the name of the new holder.
    holder: String,
}

impl Handles {
    /// Creates the objects of a process, with every configured spoke. Nothing connects yet.
    pub(crate) fn new(config: &Config) -> Self {
        let sync = Arc::new(config.sync.clone());
        let board = Arc::new(Board::default());
        let fanout = Arc::new(Fanout::new(routes(config), config.sync.catch_up_streams, board.clone()));
        let links =
            u32::try_from(config.spokes.len()).unwrap_or(u32::MAX).saturating_add(MORE_SPOKES).saturating_mul(2);
        let hub_connections = links.saturating_add(2).saturating_mul(CONNECTIONS_PER_LINK);
        let hub = Arc::new(Endpoint::new("hub", config.hub.clone(), sync, hub_connections));
        let starting = Arc::new(Semaphore::new(STARTING_LINKS));
        let card = card(config);
        let holder = card.process();
        let desk = Arc::new(Desk::new(card));
        let handles = Self { board, fanout, hub, desk, spokes: Arc::default(), starting, sets: Arc::default(), holder };
        for spoke in &config.spokes {
            handles.add(spoke);
        }
        handles
    }

    /// Returns all present spokes, in no particular order.
    pub(crate) fn spokes(&self) -> Vec<Arc<link::Shared>> {
        self.map().values().cloned().collect()
    }

    /// Creates a spoke as configured. An earlier spoke of the same zone is replaced.
    pub(super) fn add(&self, spoke: &config::Spoke) -> Arc<link::Shared> {
        self.sets.release(spoke.zone.as_str());
        let name = format!("spoke {}", spoke.zone);
        let sync = self.hub.sync().clone();
        let endpoint = Endpoint::new(&name, spoke.uri.clone(), sync, 3 * CONNECTIONS_PER_LINK);
        let spoke = Arc::new(link::Shared {
            zone: spoke.zone.clone(),
            hub: self.hub.clone(),
            endpoint: Arc::new(endpoint),
            fanout: self.fanout.clone(),
            pair: link::Pair::default(),
            status: self.board.add(&spoke.zone, &spoke.watch),
            on_unwatch: spoke.on_unwatch,
            moves: spoke.moves,
            starting: self.starting.clone(),
            sets: self.sets.clone(),
            tenure: self.desk.tenure.clone(),
            holder: self.holder.clone(),
        });
        self.map().insert(spoke.zone.clone(), spoke.clone());
        spoke
    }

    pub(super) fn remove(&self, zone: &str) -> Option<Arc<link::Shared>> {
        self.sets.release(zone);
        self.map().remove(zone)
    }

    pub(super) fn get(&self, zone: &str) -> Option<Arc<link::Shared>> {
        self.map().get(zone).cloned()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Zone, Arc<link::Shared>>> {
        self.spokes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the routes of a configuration: each zone's owner and watchers.
pub(super) fn routes(config: &Config) -> Routes {
    Routes::new(config.spokes.iter().map(|spoke| (&spoke.zone, spoke.watch.as_slice())))
}

/// What the process says of itself to the other members of the cluster.
pub(super) fn card(config: &Config) -> Card {
    Card {
        host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        pid: i64::from(std::process::id()),
        birth: birth::own(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        http: config.http.listen.to_string(),
        config: config.fingerprint(),
        zones: config.spokes.iter().map(|spoke| spoke.zone.clone()).collect(),
        lease: config.cluster.lease,
    }
}
