//! Supervises the two loops of one spoke: the reader (uplink) and the writer (downlink).

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::coordinator::Gone;
use super::restarts::{Next, Restarts};
use super::spoke_reader::SpokeReader;
use super::spoke_writer::SpokeWriter;
use super::{Outcome, spawn};
use crate::link;
use crate::mongo::error::Failure;
use crate::observe::status::State;
use crate::rules::names::Direction;

/// Interval of the progress lines in the log, and of the warning about a short time to loss.
const PROGRESS: Duration = Duration::from_secs(60);

/// Sent by the reader or the writer when its loop has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct ChildExited {
    pub(crate) link: Direction,
    pub(crate) generation: u64,
    pub(crate) outcome: Outcome,
}

/// Sent by a parent to the reader, the writer or the fan-out: finish the work under way, and stop.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct StopChild;

/// Sent by the coordinator: stop the children, then the spoke.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

/// Sent by the coordinator after a reload of the configuration: start halted links without further delay, as the reason
/// may be gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Retry;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Finish the batches under way, and stop both links until a resume.
    Pause,
    /// Start the links of a paused spoke.
    Resume,
    /// Start both links again from their checkpoints, without waiting for a delay after failures, and with new
    /// connections to the spoke.
    Restart,
    /// Compare all documents of the spoke with the hub's, and apply the differences.
    Resync,
}

impl Action {
    const ALL: [Self; 4] = [Self::Pause, Self::Resume, Self::Restart, Self::Resync];

    /// The name in the API, and in wishes at the hub.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Resync => "resync",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// Sent by the coordinator for an operator. The error is the reason for a refusal.
#[derive(Message)]
#[rtype(result = "Result<(), String>")]
pub(crate) struct Act(pub(crate) Action);

pub(crate) struct Spoke {
    spoke: Arc<link::Shared>,
    parent: Recipient<Gone>,
    reader: Supervised,
    writer: Supervised,
    paused: bool,
    stopping: bool,
}

/// A child's running generation, or the delay before the next one.
#[derive(Default)]
struct Supervised {
    generation: u64,
    running: Option<Recipient<StopChild>>,
    waiting: Option<SpawnHandle>,
    /// True while the running generation stops to make room for the next one.
    renewing: bool,
    restarts: Restarts,
}

impl Spoke {
    /// Creates a supervisor that sends [`Gone`] to `parent` as its last act. `paused`: an operator paused the spoke
    /// before the configuration was read again.
    pub(crate) fn new(spoke: Arc<link::Shared>, parent: Recipient<Gone>, paused: bool) -> Self {
        let (reader, writer) = (Supervised::default(), Supervised::default());
        Self { spoke, parent, reader, writer, paused, stopping: false }
    }

    fn child(&mut self, link: Direction) -> &mut Supervised {
        match link {
            Direction::Uplink => &mut self.reader,
            Direction::Downlink => &mut self.writer,
        }
    }

    fn start(&mut self, link: Direction, context: &mut Context<Self>) {
        if self.stopping || self.paused {
            return;
        }
        let generation = self.child(link).next();
        let (spoke, parent) = (self.spoke.clone(), context.address().recipient());
        let (zone, stop) = (self.spoke.zone.clone(), CancellationToken::new());
        let address = context.address();
        let on_panic =
            move |message| address.do_send(ChildExited { link, generation, outcome: Outcome::Panicked(message) });
        let running = match link {
            Direction::Uplink => {
                let span = tracing::info_span!(parent: None, "reader", actor = %format!("{zone}/reader"), generation);
                spawn(span, SpokeReader { spoke, generation, parent, stop }, on_panic).recipient()
            }
            Direction::Downlink => {
                let span = tracing::info_span!(parent: None, "writer", actor = %format!("{zone}/writer"), generation);
                spawn(span, SpokeWriter { spoke, generation, parent, stop }, on_panic).recipient()
            }
        };
        self.child(link).running = Some(running);
    }

    /// Replaces both children by their next generation, and forgets their failures.
    fn renew(&mut self, context: &mut Context<Self>) {
        for link in Direction::BOTH {
            let child = self.child(link);
            child.restarts.forget();
            if let Some(waiting) = child.waiting.take() {
                context.cancel_future(waiting);
            }
            child.renewing = true;
            match &child.running {
                Some(running) => running.do_send(StopChild),
                None => self.start(link, context),
            }
        }
    }

    fn report(&self) {
        for link in Direction::BOTH {
            let (applied, lag_s) = self.spoke.status.progress(link);
            tracing::info!(link = link.as_str(), applied, lag_s, "progress");
            if let Some(time) = self.spoke.status.time_to_loss(link).filter(|time| time.is_short) {
                let seconds = time.seconds;
                tracing::warn!(
                    link = link.as_str(),
                    seconds,
                    "the checkpoint will soon fall out of the source's oplog"
                );
            }
        }
    }

    fn stop_children(&mut self) {
        for link in Direction::BOTH {
            if let Some(running) = &self.child(link).running {
                running.do_send(StopChild);
            }
        }
    }

    fn end_if_idle(&mut self, context: &mut Context<Self>) {
        if self.stopping && self.reader.running.is_none() && self.writer.running.is_none() {
            tracing::info!("stopped");
            self.parent.do_send(Gone { name: self.spoke.zone.to_string() });
            context.stop();
        }
    }
}

impl Supervised {
    fn next(&mut self) -> u64 {
        self.generation += 1;
        self.renewing = false;
        self.waiting = None;
        self.restarts.start(Instant::now());
        self.generation
    }
}

impl Actor for Spoke {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        tracing::info!(hosts = self.spoke.endpoint.hosts(), paused = self.paused, "starting");
        for link in Direction::BOTH {
            if self.paused {
                self.spoke.status.link(link).set_state(State::Paused);
            }
            self.start(link, context);
        }
        context.run_interval(PROGRESS, |spoke, _| spoke.report());
    }
}

impl Handler<ChildExited> for Spoke {
    type Result = ();

    fn handle(&mut self, exited: ChildExited, context: &mut Self::Context) {
        let ChildExited { link, generation, outcome } = exited;
        let paused = self.paused;
        let child = self.child(link);
        if generation != child.generation || child.running.take().is_none() {
            return;
        }
        // Stopping, pausing and renewing come before the restart rules: the loop ended on request.
        let renewing = std::mem::take(&mut child.renewing);
        let next = child.restarts.end(&outcome, Instant::now());
        let cell = self.spoke.status.link(link);
        if self.stopping {
            return self.end_if_idle(context);
        }
        if paused {
            return cell.set_state(State::Paused);
        }
        if renewing {
            return self.start(link, context);
        }
        // Otherwise the loop failed, and starts again after a delay.
        let name = link.as_str();
        let error = outcome.reason();
        let (state, delay) = match next {
            // The loop stopped without a request: the hub's routes no longer contain the spoke, and the coordinator is
            // about to stop it.
            Next::Nothing => return,
            Next::After(delay) if matches!(outcome, Outcome::Failed(Failure::Displaced, _)) => {
                tracing::info!(link = name, generation, %error, ?delay, "link waits for its turn");
                cell.set_state(State::Standby);
                return self.wait(link, delay, context);
            }
            Next::After(delay) => {
                tracing::warn!(link = name, generation, %error, ?delay, "link failed, starting again");
                (State::Backoff, delay)
            }
            Next::Halt(error, delay) => {
                tracing::error!(link = name, generation, error, ?delay, "link halted");
                (State::Halted, delay)
            }
        };
        cell.failed(&error);
        cell.set_state(state);
        self.wait(link, delay, context);
    }
}

impl Spoke {
    fn wait(&mut self, link: Direction, delay: Duration, context: &mut Context<Self>) {
        let waiting = context.run_later(delay, move |spoke, context| spoke.start(link, context));
        self.child(link).waiting = Some(waiting);
    }
}

impl Handler<Act> for Spoke {
    type Result = Result<(), String>;

    fn handle(&mut self, Act(action): Act, context: &mut Self::Context) -> Self::Result {
        // Refuse a command that the present state does not allow.
        match (action, self.paused) {
            (Action::Pause, true) => return Err("paused already".to_owned()),
            (Action::Resume, false) => return Err("not paused".to_owned()),
            (Action::Restart | Action::Resync, true) => return Err("paused, resume first".to_owned()),
            (_, _) if self.stopping => return Err("stopping".to_owned()),
            _ => {}
        }
        tracing::info!(?action, "told by an operator");
        match action {
            Action::Pause => {
                self.paused = true;
                for link in Direction::BOTH {
                    let child = self.child(link);
                    let (waiting, is_running) = (child.waiting.take(), child.running.is_some());
                    if let Some(waiting) = waiting {
                        context.cancel_future(waiting);
                    }
                    if !is_running {
                        self.spoke.status.link(link).set_state(State::Paused);
                    }
                }
                self.stop_children();
            }
            Action::Resume => {
                self.paused = false;
                self.renew(context);
            }
            Action::Restart => {
                self.spoke.endpoint.renew();
                self.renew(context);
            }
            Action::Resync => {
                self.spoke.ask_for_resync();
                self.renew(context);
            }
        }
        Ok(())
    }
}

impl Handler<Retry> for Spoke {
    type Result = ();

    fn handle(&mut self, _: Retry, context: &mut Self::Context) {
        for link in Direction::BOTH {
            if self.spoke.status.link(link).state() != State::Halted {
                continue;
            }
            if let Some(waiting) = self.child(link).waiting.take() {
                context.cancel_future(waiting);
                self.child(link).restarts.forget();
                self.spoke.endpoint.renew();
                self.start(link, context);
            }
        }
    }
}

impl Handler<Stop> for Spoke {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        self.stopping = true;
        self.stop_children();
        self.end_if_idle(context);
    }
}
