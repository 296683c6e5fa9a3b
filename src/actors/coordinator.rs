//! The root of the actors: starts and stops the fan-out and the spokes, and applies changes of the configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::handles::{Handles, card, routes};
use super::hub_fanout::HubFanout;
use super::membership::Membership;
use super::restarts::{Next, Restarts};
use super::spoke::{self, Action, Spoke, StopChild};
use super::{Outcome, spawn, verification};
use crate::cluster::membership::{self, Hold, Superior};
use crate::cluster::pace::Pace;
use crate::config::{self, Config};
use crate::link;
use crate::mongo::error::Failure;
use crate::observe::status::{State, history};
use crate::rules::names::Zone;

/// Time for the spokes to finish their batches under way. Together with [`membership::LEAVE_LIMIT`] and `CLOSE_LIMIT`,
/// the process ends within 10 s.
const STOP_LIMIT: Duration = Duration::from_secs(7);

const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Time after which the spokes start although the hub has not said which of them this process runs. Their links then
/// show what is wrong with a server, and wait with everything else.
const START_ANYWAY: Duration = Duration::from_secs(1);

/// The longest delay before the membership's loop starts again: the other members wait for its heartbeats, and the
/// links for its word. The second one is for an error that only a person can remove.
const MEMBERSHIP_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// The fan-out's actor name in log lines, and in the list of actors that did not stop in time.
const FANOUT: &str = "hub/fanout";

/// The same for the membership.
const MEMBERSHIP: &str = "hub/membership";

/// Sent by the fan-out at the end of the loop.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct FanoutExited {
    pub(crate) generation: u64,
    pub(crate) outcome: Outcome,
}

/// Sent by the membership at the end of the loop.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct MembershipExited {
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

/// The root of the actors.
pub(crate) struct Coordinator {
    pub(super) handles: Handles,
    pub(super) config: Config,
    fanout: Option<Addr<HubFanout>>,
    /// The delay before the fan-out's next generation.
    fanout_waiting: Option<SpawnHandle>,
    generation: u64,
    restarts: Restarts,
    /// The times of the cluster, as configured at the start of the process.
    pace: Pace,
    membership: Option<Addr<Membership>>,
    membership_generation: u64,
    membership_restarts: Restarts,
    /// The zones whose spokes this process runs, each with whether it was paused then; `None` until the hub has said.
    held: Option<BTreeMap<Zone, bool>>,
    pub(super) spokes: HashMap<String, Addr<Spoke>>,
    /// Zones whose spoke an operator has paused. A pause outlives the spoke's actor, and the process: the hub keeps it.
    pub(super) paused: HashSet<String>,
    shutdown: Option<oneshot::Sender<Vec<String>>>,
    /// The shutdown waits for no spoke any more.
    is_late: bool,
    /// Stops a running verification when the process ends.
    pub(super) stop: CancellationToken,
}

impl Coordinator {
    /// Starts the coordinator, which starts all other actors.
    pub(crate) fn start(handles: Handles, config: Config) -> Addr<Self> {
        let pace = Pace::new(config.cluster.lease);
        let coordinator = Self {
            handles,
            config,
            fanout: None,
            fanout_waiting: None,
            generation: 0,
            restarts: Restarts::default(),
            pace,
            membership: None,
            membership_generation: 0,
            membership_restarts: Restarts::default(),
            held: None,
            spokes: HashMap::new(),
            paused: HashSet::new(),
            shutdown: None,
            is_late: false,
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

    fn start_membership(&mut self, context: &mut Context<Self>) {
        if self.shutdown.is_some() {
            return;
        }
        self.membership_generation += 1;
        self.membership_restarts.start(Instant::now());
        let generation = self.membership_generation;
        let here = context.address();
        let actor = Membership {
            desk: self.handles.desk.clone(),
            hub: self.handles.hub.clone(),
            board: self.handles.board.clone(),
            pace: self.pace,
            superior: Superior { hold: here.clone().recipient(), carry_out: here.clone().recipient() },
            generation,
            parent: here.clone().recipient(),
            stop: CancellationToken::new(),
        };
        let span = tracing::info_span!(parent: None, "membership", actor = MEMBERSHIP, generation);
        self.membership = Some(spawn(span, actor, move |message| {
            here.do_send(MembershipExited { generation, outcome: Outcome::Panicked(message) });
        }));
    }

    /// True if the process runs the spoke, as far as it knows.
    pub(super) fn runs(&self, zone: &str) -> bool {
        self.held.as_ref().is_none_or(|held| held.contains_key(zone))
    }

    pub(super) fn configured(&self, zone: &str) -> Option<&config::Spoke> {
        self.config.spokes.iter().find(|spoke| spoke.zone.as_str() == zone)
    }

    /// Starts all spokes, unless the hub has said by now which of them this process runs.
    fn start_anyway(&mut self, context: &mut Context<Self>) {
        if self.held.is_some() || self.shutdown.is_some() {
            return;
        }
        for spoke in self.handles.spokes() {
            if !self.spokes.contains_key(spoke.zone.as_str()) {
                self.start_spoke(spoke, context);
            }
        }
    }

    fn start_spoke(&mut self, spoke: Arc<link::Shared>, context: &mut Context<Self>) {
        self.handles.desk.has_started(spoke.zone.clone());
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

    /// Starts a spoke with its present configuration, if the process runs it; otherwise another process does.
    fn renew_spoke(&mut self, zone: &str, context: &mut Context<Self>) {
        let Some(spoke) = self.configured(zone).cloned() else { return };
        let former = self.handles.get(zone);
        let spoke = self.handles.add(&spoke);
        if self.runs(zone) {
            return self.start_spoke(spoke, context);
        }
        spoke.status.stands_by();
        let closing = async move { former.unwrap_or(spoke).endpoint.shutdown(CLOSE_LIMIT).await };
        context.spawn(closing.into_actor(self));
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

    /// Finishes the shutdown as soon as all other actors are gone. The membership goes last, because it gives up the
    /// leases of spokes that have stopped.
    fn go_on_stopping(&mut self, context: &mut Context<Self>) {
        let is_alone = self.spokes.is_empty() && self.fanout.is_none();
        if self.shutdown.is_none() || !(is_alone || self.is_late) {
            return;
        }
        match &self.membership {
            Some(membership) => membership.do_send(StopChild),
            None => self.finish(context),
        }
    }

    /// Goes on with the shutdown although actors are still running.
    fn hurry(&mut self, context: &mut Context<Self>) {
        self.is_late = true;
        context.run_later(membership::LEAVE_LIMIT, Self::finish);
        self.go_on_stopping(context);
    }

    /// Closes the connections, reports the actors that are still running, and stops. Only the first call has an effect.
    fn finish(&mut self, context: &mut Context<Self>) {
        let Some(done) = self.shutdown.take() else { return };
        let mut left: Vec<String> = self.spokes.keys().cloned().collect();
        left.extend(self.fanout.as_ref().map(|_| FANOUT.to_owned()));
        left.extend(self.membership.as_ref().map(|_| MEMBERSHIP.to_owned()));
        left.sort();
        let (hub, spokes, desk) = (self.handles.hub.clone(), self.handles.spokes(), self.handles.desk.clone());
        let closing = async move {
            // In case the membership's loop has failed in the last moment.
            membership::leave(&desk, &hub).await;
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
        tracing::info!(hub = %self.handles.hub.hosts(), spokes = self.config.spokes.len(), "starting");
        self.handles.board.cluster().expect(self.config.cluster.expected_members);
        self.start_fanout(context);
        self.start_membership(context);
        context.run_later(START_ANYWAY, Self::start_anyway);
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

impl Handler<MembershipExited> for Coordinator {
    type Result = ();

    fn handle(&mut self, exited: MembershipExited, context: &mut Self::Context) {
        let MembershipExited { generation, outcome } = exited;
        if generation != self.membership_generation || self.membership.take().is_none() {
            return;
        }
        let delay = match self.membership_restarts.end(&outcome, Instant::now()) {
            Next::Nothing => return self.go_on_stopping(context),
            Next::After(delay) => delay.min(MEMBERSHIP_DELAYS[0]),
            Next::Halt(_, delay) => delay.min(MEMBERSHIP_DELAYS[1]),
        };
        let error = outcome.reason();
        tracing::warn!(generation, %error, ?delay, "no part in the cluster, starting again");
        self.start_anyway(context);
        context.run_later(delay, Self::start_membership);
        self.go_on_stopping(context);
    }
}

impl Handler<Hold> for Coordinator {
    type Result = ();

    fn handle(&mut self, Hold(held): Hold, context: &mut Self::Context) {
        if self.shutdown.is_some() {
            return;
        }
        let is_first = self.held.is_none();
        let former = self.held.replace(held.clone()).unwrap_or_default();
        for zone in self.config.spokes.iter().map(|spoke| spoke.zone.clone()).collect::<Vec<_>>() {
            let is_new = held.contains_key(&zone) && !former.contains_key(&zone);
            // The hub knows of a pause that this process has not heard of.
            if is_new
                && held[&zone]
                && self.paused.insert(zone.to_string())
                && let Some(spoke) = self.spokes.get(zone.as_str())
            {
                spoke.do_send(spoke::Act(Action::Pause));
            }
            // An earlier pause, from before another process had the spoke, has ended there.
            if is_new && !is_first && !held[&zone] {
                self.paused.remove(zone.as_str());
            }
            match (held.contains_key(&zone), self.spokes.get(zone.as_str())) {
                (true, None) => self.renew_spoke(zone.as_str(), context),
                (false, Some(spoke)) => spoke.do_send(spoke::Stop),
                (false, None) if is_first || former.contains_key(&zone) => self.renew_spoke(zone.as_str(), context),
                // A spoke that is still stopping starts again when its actor is gone.
                _ => {}
            }
        }
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
        context.notify(Gone { name });
    }
}

impl Handler<Gone> for Coordinator {
    type Result = ();

    fn handle(&mut self, Gone { name }: Gone, context: &mut Self::Context) {
        self.spokes.remove(&name);
        self.handles.desk.has_stopped(&name);
        if self.shutdown.is_none() {
            match self.configured(&name) {
                Some(_) => self.renew_spoke(&name, context),
                None => self.remove_spoke(&name, context),
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
        // The other members judge this process by the lease that it says, so it must be the one that it beats by.
        self.config.cluster.lease = former.cluster.lease;
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
        self.handles.desk.set_card(card(&self.config));
        self.handles.board.cluster().expect(self.config.cluster.expected_members);
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
            match self.spokes.get(zone.as_str()) {
                Some(running) => running.do_send(spoke::Stop),
                None if changed == "changed" => self.renew_spoke(zone.as_str(), context),
                None => self.remove_spoke(zone.as_str(), context),
            }
        }
        // New spokes.
        for zone in after.keys().filter(|zone| !before.contains_key(*zone)) {
            tracing::info!(%zone, changed = "added", "configuration of a spoke");
            // An earlier spoke of the zone may still be stopping; the new spoke then waits. The hub says who runs it.
            if !self.spokes.contains_key(zone.as_str()) {
                self.renew_spoke(zone.as_str(), context);
            }
        }
        tracing::info!(spokes = self.config.spokes.len(), "configuration read again");
    }
}

impl Handler<Shutdown> for Coordinator {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, context: &mut Self::Context) {
        tracing::info!("stopping");
        self.stop.cancel();
        self.shutdown = Some(shutdown.done);
        self.handles.desk.leave();
        for spoke in self.spokes.values() {
            spoke.do_send(spoke::Stop);
        }
        if let Some(fanout) = &self.fanout {
            fanout.do_send(StopChild);
        }
        context.run_later(STOP_LIMIT, Self::hurry);
        self.go_on_stopping(context);
    }
}
