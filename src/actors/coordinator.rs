//! The root of the actors: starts the fan-out and the spokes, and stops them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::hub_fanout::HubFanout;
use super::restarts::{Next, Restarts};
use super::spoke::{self, Spoke, StopChild};
use super::{Outcome, spawn};
use crate::config::Config;
use crate::link;
use crate::link::fanout::Fanout;
use crate::mongo::server::Endpoint;
use crate::observe::status::{Board, State};
use crate::sync::route::Routes;

/// How long the spokes may take to finish what they have under way.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// How long connections may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The name of the fan-out among those that must be gone.
const FANOUT: &str = "hub/fanout";

/// Sent by the fan-out when its loop ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FanoutExited {
    /// Which of its generations.
    pub generation: u64,
    /// How.
    pub outcome: Outcome,
}

/// Sent by a spoke when it and its children are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gone {
    /// Its zone.
    pub name: String,
}

/// Sent by whoever wants the process to end: everything finishes what it has under way.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shutdown {
    /// Is told the names of those that were not done in time.
    pub done: oneshot::Sender<Vec<String>>,
}

/// Everything that is shared with the outside of the actors.
#[derive(Clone)]
pub struct Handles {
    /// What is shown.
    pub board: Arc<Board>,
    /// The hub's stream.
    pub fanout: Arc<Fanout>,
    /// The hub.
    pub hub: Arc<Endpoint>,
    /// The spokes, by zone.
    pub spokes: Vec<Arc<link::Spoke>>,
}

/// The root of the actors.
pub struct Coordinator {
    handles: Handles,
    fanout: Option<Addr<HubFanout>>,
    generation: u64,
    restarts: Restarts,
    spokes: HashMap<String, Addr<Spoke>>,
    shutdown: Option<oneshot::Sender<Vec<String>>>,
}

/// Commands that one link may have under way at once at either server: its transaction, its stream, reads beside them.
const CONNECTIONS_PER_LINK: u32 = 4;

impl Handles {
    /// What runs this configuration.
    pub fn new(config: &Config) -> Self {
        let sync = Arc::new(config.sync.clone());
        let routes = Routes::new(config.spokes.iter().map(|spoke| (&spoke.zone, spoke.watch.as_slice())));
        let board = Arc::new(Board::default());
        let fanout = Arc::new(Fanout::new(routes, board.hub_streams().clone()));
        let links = u32::try_from(config.spokes.len()).unwrap_or(u32::MAX).saturating_mul(2);
        let hub_connections = links.saturating_add(2).saturating_mul(CONNECTIONS_PER_LINK);
        let hub = Arc::new(Endpoint::new("hub", config.hub.clone(), sync.clone(), hub_connections));
        let spoke = |spoke: &crate::config::Spoke| {
            let name = format!("spoke {}", spoke.zone);
            let endpoint = Endpoint::new(&name, spoke.uri.clone(), sync.clone(), 3 * CONNECTIONS_PER_LINK);
            Arc::new(link::Spoke {
                zone: spoke.zone.clone(),
                hub: hub.clone(),
                endpoint: Arc::new(endpoint),
                fanout: fanout.clone(),
                links: link::Links::default(),
                status: board.add(&spoke.zone, &spoke.watch),
                on_unwatch: spoke.on_unwatch,
                holder: holder(),
            })
        };
        let spokes = config.spokes.iter().map(spoke).collect();
        Self { board, fanout, hub, spokes }
    }
}

/// Who this process is, in checkpoints.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} process {}", host.trim(), std::process::id())
}

impl Coordinator {
    /// Starts the actors.
    pub fn start(handles: Handles) -> Addr<Self> {
        let coordinator = Self {
            handles,
            fanout: None,
            generation: 0,
            restarts: Restarts::default(),
            spokes: HashMap::new(),
            shutdown: None,
        };
        let span = tracing::info_span!(parent: None, "coordinator", actor = "coordinator");
        spawn(span, coordinator, |error| tracing::error!(error, "the coordinator is gone"))
    }

    fn start_fanout(&mut self, context: &mut Context<Self>) {
        if self.shutdown.is_some() {
            return;
        }
        self.generation += 1;
        self.restarts.start(Instant::now());
        let generation = self.generation;
        let actor = HubFanout {
            fanout: self.handles.fanout.clone(),
            hub: self.handles.hub.clone(),
            cell: self.handles.board.hub().clone(),
            generation,
            parent: context.address().recipient(),
            stop: CancellationToken::new(),
        };
        let span = tracing::info_span!(parent: None, "fanout", actor = FANOUT, generation);
        let address = context.address();
        self.fanout = Some(spawn(span, actor, move |message| {
            address.do_send(FanoutExited { generation, outcome: Outcome::Panicked(message) });
        }));
    }

    /// Stops the fan-out once the spokes are gone, and ends when it is gone, too.
    fn go_on_stopping(&mut self, context: &mut Context<Self>) {
        if self.shutdown.is_none() || !self.spokes.is_empty() {
            return;
        }
        match &self.fanout {
            Some(fanout) => fanout.do_send(StopChild),
            None => self.finish(context),
        }
    }

    /// Says who is not gone, and ends.
    fn finish(&mut self, context: &mut Context<Self>) {
        let Some(done) = self.shutdown.take() else { return };
        let mut left: Vec<String> = self.spokes.keys().cloned().collect();
        left.extend(self.fanout.as_ref().map(|_| FANOUT.to_owned()));
        left.sort();
        let (hub, spokes) = (self.handles.hub.clone(), self.handles.spokes.clone());
        let closing = async move {
            let spokes = spokes.iter().map(|spoke| spoke.endpoint.shutdown(CLOSE_LIMIT));
            futures_util::future::join(hub.shutdown(CLOSE_LIMIT), futures_util::future::join_all(spokes)).await;
            if done.send(left).is_err() {
                tracing::debug!("nobody waits for the end");
            }
        };
        context.spawn(closing.into_actor(self).map(|(), _, context| context.stop()));
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        tracing::info!(hub = %self.handles.hub.hosts(), spokes = self.handles.spokes.len(), "starting");
        self.start_fanout(context);
        for spoke in &self.handles.spokes {
            let zone = spoke.zone.to_string();
            let span = tracing::info_span!(parent: None, "spoke", actor = %format!("{zone}/spoke"));
            let actor = Spoke::new(spoke.clone(), context.address().recipient());
            let (parent, name) = (context.address(), zone.clone());
            let address = spawn(span, actor, move |error| {
                tracing::error!(zone = name, error, "the spoke's supervisor is gone");
                parent.do_send(Gone { name });
            });
            self.spokes.insert(zone, address);
        }
    }
}

impl Handler<FanoutExited> for Coordinator {
    type Result = ();

    fn handle(&mut self, exited: FanoutExited, context: &mut Self::Context) {
        let FanoutExited { generation, outcome } = exited;
        if generation != self.generation || self.fanout.take().is_none() {
            return;
        }
        let error = outcome.reason();
        let cell = self.handles.board.hub();
        let (state, delay) = match self.restarts.end(&outcome, Instant::now()) {
            Next::Nothing => return self.go_on_stopping(context),
            // A lost place is no reason to wait: the stream starts at the present, and every spoke sees to its own.
            Next::Halt(_) if matches!(outcome, Outcome::Failed(crate::mongo::error::Failure::HistoryLost, _)) => {
                (State::Backoff, Duration::ZERO)
            }
            Next::After(delay) => (State::Backoff, delay),
            Next::Halt(delay) => (State::Halted, delay),
        };
        tracing::warn!(generation, error, ?delay, "the hub's change stream ended, starting again");
        cell.failed(error);
        cell.set_state(state);
        context.run_later(delay, |coordinator, context| coordinator.start_fanout(context));
        self.go_on_stopping(context);
    }
}

impl Handler<Gone> for Coordinator {
    type Result = ();

    fn handle(&mut self, gone: Gone, context: &mut Self::Context) {
        self.spokes.remove(&gone.name);
        self.go_on_stopping(context);
    }
}

impl Handler<Shutdown> for Coordinator {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) {
        tracing::info!("stopping");
        self.shutdown = Some(shutdown.done);
        for spoke in self.spokes.values() {
            spoke.do_send(spoke::Stop);
        }
        context.run_later(STOP_LIMIT, Self::finish);
        self.go_on_stopping(context);
    }
}
