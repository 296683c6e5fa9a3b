//! The root of the actors: starts and stops the fan-out and the spokes, and applies changes of the configuration.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::handles::{Handles, routes};
use super::hub_fanout::HubFanout;
use super::restarts::{Next, Restarts};
use super::spoke::{self, Action, Spoke, StopChild};
use super::{Outcome, spawn, verification};
use crate::config::{self, Config};
use crate::link;
use crate::link::letters::Request;
use crate::mongo::error::Failure;
use crate::observe::status::{State, history};
use crate::rules::names::{Direction, Zone};

/// Time for the spokes to finish their batches under way. Together with `CLOSE_LIMIT`, the process ends within 10 s.
const STOP_LIMIT: Duration = Duration::from_secs(7);

const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The fan-out's actor name in log lines, and in the list of actors that did not stop in time.
const FANOUT: &str = "hub/fanout";

/// The answer to an operator between the two actors of a spoke whose configuration has changed.
const RELOADING: &str = "it is being started with another configuration: try again";

/// Sent by the fan-out at the end of the loop.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct FanoutExited {
    pub(crate) generation: u64,
    pub(crate) outcome: Outcome,
}

/// Sent by a spoke when its children and the spoke itself have stopped.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Gone {
    pub(crate) name: String,
}

/// Sent by the `run` command to end the process. Every actor finishes the work under way.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Shutdown {
    /// Receives the names of the actors that did not stop in time.
    pub(crate) done: oneshot::Sender<Vec<String>>,
}

/// Sent by the `run` command after a reload of the configuration. Spokes without changes run on.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Reload(pub(crate) Box<Config>);

/// Sent by the HTTP interface when an operator pauses, resumes, restarts or resyncs a spoke.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct ActOn {
    pub(crate) zone: String,
    pub(crate) action: Action,
}

/// Sent by the HTTP interface when an operator retries or drops dead letters.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct Letters {
    pub(crate) zone: String,
    pub(crate) request: Request,
}

/// The reason why the coordinator refuses an operator's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No spoke has the zone.
    Unknown,
    /// The present state or configuration does not allow the request; the text says why.
    Senseless(String),
    /// The coordinator is gone: the program stops.
    Stopping,
}

/// The root of the actors.
pub(crate) struct Coordinator {
    pub(super) handles: Handles,
    pub(super) config: Config,
    fanout: Option<Addr<HubFanout>>,
    /// The delay before the fan-out's next generation.
    fanout_waiting: Option<SpawnHandle>,
    generation: u64,
    restarts: Restarts,
    spokes: HashMap<String, Addr<Spoke>>,
    /// Zones whose spoke is stopping, and starts again with the present configuration as soon as the old actor is gone.
    replaced: HashSet<String>,
    /// Zones whose spoke an operator has paused. A pause outlives the spoke's actor.
    paused: HashSet<String>,
    shutdown: Option<oneshot::Sender<Vec<String>>>,
    /// Stops a running verification when the process ends.
    pub(super) stop: CancellationToken,
}

impl Coordinator {
    /// Starts the coordinator, which starts all other actors.
    pub(crate) fn start(handles: Handles, config: Config) -> Addr<Self> {
        let coordinator = Self {
            handles,
            config,
            fanout: None,
            fanout_waiting: None,
            generation: 0,
            restarts: Restarts::default(),
            spokes: HashMap::new(),
            replaced: HashSet::new(),
            paused: HashSet::new(),
            shutdown: None,
            stop: CancellationToken::new(),
        };
        let span = tracing::info_span!(parent: None, "coordinator", actor = "coordinator");
        spawn(span, coordinator, |error| tracing::error!(error, "coordinator ended unexpectedly"))
    }

    fn start_fanout(&mut self, context: &mut Context<Self>) {
        if self.shutdown.is_some() {
            return;
        }
        self.fanout_waiting = None;
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

    fn start_spoke(&mut self, spoke: Arc<link::Shared>, context: &mut Context<Self>) {
        let zone = spoke.zone.to_string();
        let span = tracing::info_span!(parent: None, "spoke", actor = %format!("{zone}/spoke"));
        let actor = Spoke::new(spoke, context.address().recipient(), self.paused.contains(&zone));
        let (parent, name) = (context.address(), zone.clone());
        let address = spawn(span, actor, move |error| {
            tracing::error!(zone = name, error, "the spoke's supervisor panicked, starting again");
            parent.do_send(SupervisorGone { name });
        });
        self.spokes.insert(zone, address);
    }

    /// Starts a spoke with its present configuration, if the zone is still configured.
    fn renew_spoke(&mut self, zone: &str, context: &mut Context<Self>) {
        let Some(spoke) = self.config.spokes.iter().find(|spoke| spoke.zone.as_str() == zone).cloned() else { return };
        let spoke = self.handles.add(&spoke);
        self.start_spoke(spoke, context);
    }

    /// Removes a spoke without a configuration from status and handles, and closes the connections.
    fn remove_spoke(&mut self, zone: &str, context: &mut Context<Self>) {
        self.handles.board.remove(zone);
        self.paused.remove(zone);
        let Some(spoke) = self.handles.remove(zone) else { return };
        tracing::info!(zone, "spoke removed");
        let closing = async move { spoke.endpoint.shutdown(CLOSE_LIMIT).await };
        context.spawn(closing.into_actor(self));
    }

    /// Finishes the shutdown as soon as all other actors are gone.
    fn go_on_stopping(&mut self, context: &mut Context<Self>) {
        if self.spokes.is_empty() && self.fanout.is_none() {
            self.finish(context);
        }
    }

    /// Closes the connections, reports the actors that are still running, and stops. Only the first call has an effect.
    fn finish(&mut self, context: &mut Context<Self>) {
        let Some(done) = self.shutdown.take() else { return };
        let mut left: Vec<String> = self.spokes.keys().cloned().collect();
        left.extend(self.fanout.as_ref().map(|_| FANOUT.to_owned()));
        left.sort();
        let (hub, spokes) = (self.handles.hub.clone(), self.handles.spokes());
        let closing = async move {
            let spokes = spokes.iter().map(|spoke| spoke.endpoint.shutdown(CLOSE_LIMIT));
            futures_util::future::join(hub.shutdown(CLOSE_LIMIT), futures_util::future::join_all(spokes)).await;
            if done.send(left).is_err() {
                tracing::debug!("shutdown finished, but the caller no longer waits");
            }
        };
        context.spawn(closing.into_actor(self).map(|(), _, context| context.stop()));
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let spokes = self.handles.spokes();
        tracing::info!(hub = %self.handles.hub.hosts(), spokes = spokes.len(), "starting");
        self.start_fanout(context);
        for spoke in spokes {
            self.start_spoke(spoke, context);
        }
        context.run_interval(history::INTERVAL, |coordinator, _| coordinator.handles.board.sample());
        verification::schedule(&self.config, context);
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
            // A lost resume token needs no delay: the stream starts at the present, and each spoke reconciles by
            // itself.
            _ if matches!(outcome, Outcome::Failed(Failure::HistoryLost, _)) => (State::Backoff, Duration::ZERO),
            Next::After(delay) => (State::Backoff, delay),
            Next::Halt(_, delay) => (State::Halted, delay),
        };
        tracing::warn!(generation, %error, ?delay, "the hub's change stream failed, starting again");
        cell.failed(&error);
        cell.set_state(state);
        let waiting = context.run_later(delay, |coordinator, context| coordinator.start_fanout(context));
        self.fanout_waiting = Some(waiting);
        self.go_on_stopping(context);
    }
}

/// Sent by the panic hook of a spoke's supervisor.
#[derive(Message)]
#[rtype(result = "()")]
struct SupervisorGone {
    name: String,
}

impl Handler<SupervisorGone> for Coordinator {
    type Result = ();

    fn handle(&mut self, SupervisorGone { name }: SupervisorGone, context: &mut Self::Context) {
        self.replaced.insert(name.clone());
        context.notify(Gone { name });
    }
}

impl Handler<Gone> for Coordinator {
    type Result = ();

    fn handle(&mut self, Gone { name }: Gone, context: &mut Self::Context) {
        self.spokes.remove(&name);
        if self.shutdown.is_none() {
            if self.replaced.remove(&name) {
                self.renew_spoke(&name, context);
            } else {
                self.remove_spoke(&name, context);
            }
        }
        self.go_on_stopping(context);
    }
}

impl Handler<Reload> for Coordinator {
    type Result = ();

    fn handle(&mut self, Reload(config): Reload, context: &mut Self::Context) {
        // Some sections take effect only at the next start; the log names those with changes.
        let former = std::mem::replace(&mut self.config, *config);
        for section in self.config.fixed_sections_that_differ(&former) {
            tracing::warn!(section, "changed in the configuration, takes effect at the next start");
        }
        // A verification compares what the process keeps in step.
        if self.config.hub.hosts() != former.hub.hosts() {
            self.config.hub = former.hub.clone();
        } else if self.config.hub != former.hub {
            tracing::info!("other credentials for the hub: new connections use them");
            self.handles.hub.set_uri(self.config.hub.clone());
        }
        self.config.sync = former.sync.clone();
        let by_zone = |config: &Config| -> HashMap<Zone, config::Spoke> {
            config.spokes.iter().map(|spoke| (spoke.zone.clone(), spoke.clone())).collect()
        };
        // The new configuration may remove the reason why the fan-out halted: start without further delay.
        if self.handles.board.hub().state() == State::Halted
            && let Some(waiting) = self.fanout_waiting.take()
        {
            context.cancel_future(waiting);
            self.restarts.forget();
            self.handles.hub.renew();
            self.start_fanout(context);
        }
        // New routes come first, because spokes that start below need routes to attach.
        let (before, after) = (by_zone(&former), by_zone(&self.config));
        self.handles.fanout.set_routes(routes(&self.config));
        // Former spokes: a removed or changed one stops, an unchanged one retries halted links.
        for (zone, spoke) in &before {
            let changed = match after.get(zone) {
                None => "removed",
                Some(present) if present != spoke => "changed",
                Some(_) => {
                    if let Some(running) = self.spokes.get(zone.as_str()) {
                        running.do_send(spoke::Retry);
                    }
                    continue;
                }
            };
            tracing::info!(%zone, changed, "configuration of a spoke");
            if changed == "changed" {
                self.replaced.insert(zone.to_string());
            } else {
                self.replaced.remove(zone.as_str());
            }
            if let Some(running) = self.spokes.get(zone.as_str()) {
                running.do_send(spoke::Stop);
            }
        }
        // New spokes.
        for zone in after.keys().filter(|zone| !before.contains_key(*zone)) {
            tracing::info!(%zone, changed = "added", "configuration of a spoke");
            // An earlier spoke of the zone may still be stopping; the new spoke then waits.
            if self.spokes.contains_key(zone.as_str()) {
                self.replaced.insert(zone.to_string());
            } else {
                self.renew_spoke(zone.as_str(), context);
            }
        }
        tracing::info!(spokes = self.config.spokes.len(), "configuration read again");
    }
}

impl Handler<ActOn> for Coordinator {
    type Result = ResponseActFuture<Self, Result<(), Refused>>;

    fn handle(&mut self, ActOn { zone, action }: ActOn, _: &mut Self::Context) -> Self::Result {
        let spoke = self.spokes.get(&zone).cloned();
        let is_configured = self.config.spokes.iter().any(|spoke| spoke.zone.as_str() == zone);
        // The future holds only the spoke's address, so the coordinator may handle other messages in the meantime.
        let acting = async move {
            let absent = || if is_configured { Refused::Senseless(RELOADING.to_owned()) } else { Refused::Unknown };
            match spoke.ok_or_else(absent)?.send(spoke::Act(action)).await {
                Ok(done) => done.map_err(Refused::Senseless),
                Err(_) => Err(absent()),
            }
        };
        Box::pin(acting.into_actor(self).map(move |done, coordinator, _| {
            match (&done, action) {
                (Ok(()), Action::Pause) => drop(coordinator.paused.insert(zone)),
                (Ok(()), Action::Resume) => drop(coordinator.paused.remove(&zone)),
                _ => {}
            }
            done
        }))
    }
}

impl Handler<Letters> for Coordinator {
    type Result = Result<(), Refused>;

    fn handle(&mut self, Letters { zone, request }: Letters, _: &mut Self::Context) -> Self::Result {
        let spoke = self.handles.get(&zone).ok_or(Refused::Unknown)?;
        let asked = Direction::BOTH.map(|link| spoke.pair.letters(link).ask(request.clone()));
        if asked.contains(&true) {
            Ok(())
        } else {
            Err(Refused::Senseless("too many requests wait for the spoke's links already: they go on first".to_owned()))
        }
    }
}

impl Handler<Shutdown> for Coordinator {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) {
        tracing::info!("stopping");
        self.stop.cancel();
        self.shutdown = Some(shutdown.done);
        for spoke in self.spokes.values() {
            spoke.do_send(spoke::Stop);
        }
        if let Some(fanout) = &self.fanout {
            fanout.do_send(StopChild);
        }
        context.run_later(STOP_LIMIT, Self::finish);
        self.go_on_stopping(context);
    }
}
