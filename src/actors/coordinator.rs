//! The root of the actors: starts the fan-out and the spokes, changes them when the configuration changes, and stops them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::hub_fanout::HubFanout;
use super::restarts::{Next, Restarts};
use super::spoke::{self, Action, Spoke, StopChild};
use super::{Outcome, panic_message, spawn};
use crate::config::{self, Config};
use crate::link;
use crate::link::hub::fanout::Fanout;
use crate::link::letters::Request;
use crate::mongo::error::{Error, Failure};
use crate::mongo::server::Endpoint;
use crate::observe::status::{Board, State, history};
use crate::rules::names::{Direction, Zone};
use crate::rules::route::Routes;
use crate::verify::report::{Report, Verdict};
use crate::verify::scope::{Scope, ScopeRequest};

/// How long the spokes may take to finish what they have under way.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// How long connections may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// An interrupted verification of this name is gone on with.
const RUN: &str = "process";

/// The name of the fan-out among those that must be gone.
const FANOUT: &str = "hub/fanout";

/// Sent by the fan-out when its loop ended.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct FanoutExited {
    /// Which of its generations.
    pub(crate) generation: u64,
    /// How.
    pub(crate) outcome: Outcome,
}

/// Sent by a spoke when it and its children are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Gone {
    /// Its zone.
    pub(crate) name: String,
}

/// Sent by whoever wants the process to end: everything finishes what it has under way.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Shutdown {
    /// Is told the names of those that were not done in time.
    pub(crate) done: oneshot::Sender<Vec<String>>,
}

/// Sent when the configuration was read again: changes what changed, and nothing else.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Reload(pub(crate) Box<Config>);

/// Sent for an operator who wants something done about one spoke.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct ActOn {
    /// The spoke's zone.
    pub(crate) zone: String,
    /// What is to be done.
    pub(crate) action: Action,
}

/// Sent for an operator who wants something done about dead letters.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct Letters {
    /// The spoke's zone.
    pub(crate) zone: String,
    /// What is to be done.
    pub(crate) request: Request,
}

/// Sent for an operator who wants hub and spokes to be compared.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct Verify(pub(crate) ScopeRequest);

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no spoke with this zone.
    Unknown,
    /// It makes no sense now.
    Senseless(String),
}

/// Everything that is shared with the outside of the actors.
#[derive(Clone)]
pub(crate) struct Handles {
    /// What is shown.
    pub(crate) board: Arc<Board>,
    /// The hub's stream.
    pub(crate) fanout: Arc<Fanout>,
    /// The hub.
    pub(crate) hub: Arc<Endpoint>,
    /// The spokes, by zone.
    spokes: Arc<Mutex<HashMap<Zone, Arc<link::Spoke>>>>,
    starting: Arc<Semaphore>,
}

/// The root of the actors.
pub(crate) struct Coordinator {
    handles: Handles,
    config: Config,
    fanout: Option<Addr<HubFanout>>,
    /// The wait for its next generation.
    fanout_waiting: Option<SpawnHandle>,
    generation: u64,
    restarts: Restarts,
    spokes: HashMap<String, Addr<Spoke>>,
    /// Spokes that begin anew, as they are configured now, once they are gone.
    replaced: HashSet<String>,
    shutdown: Option<oneshot::Sender<Vec<String>>>,
    /// Ends a verification.
    stop: CancellationToken,
}

/// Commands that one link may have under way at once at either server: its transaction, its stream, reads beside them.
const CONNECTIONS_PER_LINK: u32 = 4;

/// So many spokes may be added while the process runs before connections to the hub become scarce.
const MORE_SPOKES: u32 = 64;

/// So many links may begin at the hub at once: each reads tags and checkpoints there.
const STARTING_LINKS: usize = 8;

impl Handles {
    /// What runs this configuration.
    pub(crate) fn new(config: &Config) -> Self {
        let sync = Arc::new(config.sync.clone());
        let board = Arc::new(Board::default());
        let fanout = Arc::new(Fanout::new(routes(config), config.sync.catch_up_streams, board.clone()));
        let links =
            u32::try_from(config.spokes.len()).unwrap_or(u32::MAX).saturating_add(MORE_SPOKES).saturating_mul(2);
        let hub_connections = links.saturating_add(2).saturating_mul(CONNECTIONS_PER_LINK);
        let hub = Arc::new(Endpoint::new("hub", config.hub.clone(), sync, hub_connections));
        let starting = Arc::new(Semaphore::new(STARTING_LINKS));
        let handles = Self { board, fanout, hub, spokes: Arc::default(), starting };
        for spoke in &config.spokes {
            handles.add(spoke);
        }
        handles
    }

    /// The spokes.
    pub(crate) fn spokes(&self) -> Vec<Arc<link::Spoke>> {
        self.map().values().cloned().collect()
    }

    fn add(&self, spoke: &config::Spoke) -> Arc<link::Spoke> {
        let name = format!("spoke {}", spoke.zone);
        let sync = self.hub.sync().clone();
        let endpoint = Endpoint::new(&name, spoke.uri.clone(), sync, 3 * CONNECTIONS_PER_LINK);
        let spoke = Arc::new(link::Spoke {
            zone: spoke.zone.clone(),
            hub: self.hub.clone(),
            endpoint: Arc::new(endpoint),
            fanout: self.fanout.clone(),
            links: link::Links::default(),
            status: self.board.add(&spoke.zone, &spoke.watch),
            on_unwatch: spoke.on_unwatch,
            starting: self.starting.clone(),
            holder: holder(),
        });
        self.map().insert(spoke.zone.clone(), spoke.clone());
        spoke
    }

    fn remove(&self, zone: &str) -> Option<Arc<link::Spoke>> {
        self.map().remove(zone)
    }

    fn get(&self, zone: &str) -> Option<Arc<link::Spoke>> {
        self.map().get(zone).cloned()
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Zone, Arc<link::Spoke>>> {
        self.spokes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn routes(config: &Config) -> Routes {
    Routes::new(config.spokes.iter().map(|spoke| (&spoke.zone, spoke.watch.as_slice())))
}

/// Who this process is, in checkpoints.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} process {}", host.trim(), std::process::id())
}

impl Coordinator {
    /// Starts the actors.
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
            shutdown: None,
            stop: CancellationToken::new(),
        };
        let span = tracing::info_span!(parent: None, "coordinator", actor = "coordinator");
        spawn(span, coordinator, |error| tracing::error!(error, "the coordinator is gone"))
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

    fn start_spoke(&mut self, spoke: Arc<link::Spoke>, context: &mut Context<Self>) {
        let zone = spoke.zone.to_string();
        let span = tracing::info_span!(parent: None, "spoke", actor = %format!("{zone}/spoke"));
        let actor = Spoke::new(spoke, context.address().recipient());
        let (parent, name) = (context.address(), zone.clone());
        let address = spawn(span, actor, move |error| {
            tracing::error!(zone = name, error, "the spoke's supervisor is gone, starting it again");
            parent.do_send(SupervisorGone { name });
        });
        self.spokes.insert(zone, address);
    }

    /// A spoke as it is configured now, if it still is.
    fn renew_spoke(&mut self, zone: &str, context: &mut Context<Self>) {
        let Some(spoke) = self.config.spokes.iter().find(|spoke| spoke.zone.as_str() == zone).cloned() else { return };
        let spoke = self.handles.add(&spoke);
        self.start_spoke(spoke, context);
    }

    /// Forgets a spoke that is no longer configured.
    fn remove_spoke(&mut self, zone: &str, context: &mut Context<Self>) {
        self.handles.board.remove(zone);
        let Some(spoke) = self.handles.remove(zone) else { return };
        tracing::info!(zone, "spoke removed");
        let closing = async move { spoke.endpoint.shutdown(CLOSE_LIMIT).await };
        context.spawn(closing.into_actor(self));
    }

    /// Ends when all others are gone.
    fn go_on_stopping(&mut self, context: &mut Context<Self>) {
        if self.spokes.is_empty() && self.fanout.is_none() {
            self.finish(context);
        }
    }

    /// Says who is not gone, and ends.
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
                tracing::debug!("nobody waits for the end");
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
        if let Some(interval) = scheduled(&self.config) {
            context.run_interval(interval, |coordinator, context| {
                let scope = Scope::scheduled(&coordinator.config);
                if coordinator.verify(scope, context).is_err() {
                    tracing::warn!("the last verification goes on, no other is begun");
                }
            });
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
            _ if matches!(outcome, Outcome::Failed(Failure::HistoryLost, _)) => (State::Backoff, Duration::ZERO),
            Next::After(delay) => (State::Backoff, delay),
            Next::Halt(_, delay) => (State::Halted, delay),
        };
        tracing::warn!(generation, %error, ?delay, "the hub's change stream ended, starting again");
        cell.failed(&error);
        cell.set_state(state);
        let waiting = context.run_later(delay, |coordinator, context| coordinator.start_fanout(context));
        self.fanout_waiting = Some(waiting);
        self.go_on_stopping(context);
    }
}

/// Sent when a spoke's supervisor itself panicked.
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
        let former = std::mem::replace(&mut self.config, *config);
        for section in self.config.fixed_sections_that_differ(&former) {
            tracing::warn!(section, "changed in the configuration, which takes effect at the next start only");
        }
        let by_zone = |config: &Config| -> HashMap<Zone, config::Spoke> {
            config.spokes.iter().map(|spoke| (spoke.zone.clone(), spoke.clone())).collect()
        };
        if self.handles.board.hub().state() == State::Halted
            && let Some(waiting) = self.fanout_waiting.take()
        {
            context.cancel_future(waiting);
            self.restarts.forget();
            self.start_fanout(context);
        }
        let (before, after) = (by_zone(&former), by_zone(&self.config));
        self.handles.fanout.set_routes(routes(&self.config));
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
        for zone in after.keys().filter(|zone| !before.contains_key(*zone)) {
            tracing::info!(%zone, changed = "added", "configuration of a spoke");
            // One of this zone may still be on its way out.
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
    type Result = ResponseFuture<Result<(), Refused>>;

    fn handle(&mut self, ActOn { zone, action }: ActOn, _: &mut Self::Context) -> Self::Result {
        let spoke = self.spokes.get(&zone).cloned();
        // Only the two addresses are used: nothing of the coordinator can change meanwhile.
        Box::pin(async move {
            let Some(spoke) = spoke else { return Err(Refused::Unknown) };
            match spoke.send(spoke::Act(action)).await {
                Ok(done) => done.map_err(Refused::Senseless),
                Err(_) => Err(Refused::Unknown),
            }
        })
    }
}

impl Coordinator {
    /// Begins to compare hub and spokes, unless that goes on already.
    fn verify(&self, scope: Scope, context: &mut Context<Self>) -> Result<(), Refused> {
        if !self.handles.board.verification().begin() {
            return Err(Refused::Senseless("a verification goes on already".to_owned()));
        }
        tracing::info!(?scope, "verification begins");
        let (config, board, stop) = (self.config.clone(), self.handles.board.clone(), self.stop.clone());
        let work = async move { crate::verify::run(&config, &scope, RUN, board.verification(), &stop).await };
        let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
        context.spawn(task.into_actor(self).map(|ended, coordinator: &mut Self, _| coordinator.verified(ended)));
        Ok(())
    }

    fn verified(&self, ended: Result<Result<Report, Error>, JoinError>) {
        let cell = self.handles.board.verification();
        let report = match ended {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => {
                tracing::error!(%error, "verification failed");
                return cell.end(0, Some(error.to_string()));
            }
            Err(error) => {
                let reason = if error.is_panic() { panic_message(error.into_panic()) } else { "stopped".to_owned() };
                tracing::error!(error = reason, "verification failed");
                return cell.end(0, Some(reason));
            }
        };
        cell.set_report(serde_json::to_string(&report).unwrap_or_default());
        let untold = report.untold.first().map(|untold| format!("spoke {}: {}", untold.spoke, untold.reason));
        match report.verdict() {
            Verdict::Equal => {
                tracing::info!(documents = report.documents, repaired = report.repaired, "verified: equal")
            }
            Verdict::Different => tracing::error!(differences = report.differences, "verified: not equal"),
            Verdict::Untold => tracing::warn!(reason = untold, "verification cannot tell"),
        }
        cell.end(report.differences, untold);
    }
}

/// How often everything is compared, if the configuration wants that.
fn scheduled(config: &Config) -> Option<Duration> {
    let hours = config.verify.every_hours;
    (hours > 0).then(|| Duration::from_secs(u64::from(hours) * 3_600))
}

impl Handler<Verify> for Coordinator {
    type Result = Result<(), Refused>;

    fn handle(&mut self, Verify(wanted): Verify, context: &mut Self::Context) -> Self::Result {
        let scope = Scope::of(&wanted, &self.config);
        match scope.problem(&self.config) {
            Some(problem) => Err(Refused::Senseless(problem)),
            None => self.verify(scope, context),
        }
    }
}

impl Handler<Letters> for Coordinator {
    type Result = Result<(), Refused>;

    fn handle(&mut self, Letters { zone, request }: Letters, _: &mut Self::Context) -> Self::Result {
        let spoke = self.handles.get(&zone).ok_or(Refused::Unknown)?;
        for link in Direction::BOTH {
            spoke.links.letters(link).add(request.clone());
        }
        Ok(())
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
