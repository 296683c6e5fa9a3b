//! One spoke: supervises its reader and its writer.

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::coordinator::Gone;
use super::restarts::{Next, Restarts};
use super::spoke_reader::SpokeReader;
use super::spoke_writer::SpokeWriter;
use super::{Outcome, spawn};
use crate::link;
use crate::observe::status::State;
use crate::sync::names::Direction;

/// Which child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// The uplink's.
    Reader,
    /// The downlink's.
    Writer,
}

/// Sent by the reader and the writer when their loop ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ChildExited {
    /// Which one.
    pub child: Child,
    /// Which of its generations.
    pub generation: u64,
    /// How.
    pub outcome: Outcome,
}

/// Sent to the reader and the writer: finish the batch under way, and end.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct StopChild;

/// Sent by the coordinator: stop the children, and end.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Supervises the two loops of one spoke.
pub struct Spoke {
    spoke: Arc<link::Spoke>,
    parent: Recipient<Gone>,
    reader: Supervised<SpokeReader>,
    writer: Supervised<SpokeWriter>,
    stopping: bool,
}

/// A child, or the wait for its next generation.
struct Supervised<A: Actor> {
    generation: u64,
    running: Option<Addr<A>>,
    restarts: Restarts,
}

impl<A: Actor> Default for Supervised<A> {
    fn default() -> Self {
        Self { generation: 0, running: None, restarts: Restarts::default() }
    }
}

impl Spoke {
    /// A spoke that tells `parent` when it is gone.
    pub fn new(spoke: Arc<link::Spoke>, parent: Recipient<Gone>) -> Self {
        Self { spoke, parent, reader: Supervised::default(), writer: Supervised::default(), stopping: false }
    }

    fn start(&mut self, child: Child, context: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        let (spoke, parent) = (self.spoke.clone(), context.address().recipient());
        let (zone, stop) = (self.spoke.zone.clone(), CancellationToken::new());
        let address = context.address();
        let on_panic = move |generation| {
            move |message| {
                let outcome = Outcome::Panicked(message);
                address.do_send(ChildExited { child, generation, outcome });
            }
        };
        match child {
            Child::Reader => {
                let generation = self.reader.next();
                let span = tracing::info_span!(parent: None, "reader", actor = %format!("{zone}/reader"), generation);
                let actor = SpokeReader { spoke, generation, parent, stop };
                self.reader.running = Some(spawn(span, actor, on_panic(generation)));
            }
            Child::Writer => {
                let generation = self.writer.next();
                let span = tracing::info_span!(parent: None, "writer", actor = %format!("{zone}/writer"), generation);
                let actor = SpokeWriter { spoke, generation, parent, stop };
                self.writer.running = Some(spawn(span, actor, on_panic(generation)));
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

impl<A: Actor> Supervised<A> {
    fn next(&mut self) -> u64 {
        self.generation += 1;
        self.restarts.start(Instant::now());
        self.generation
    }

    /// How to go on after this generation ended; `None` if that is old news.
    fn exited(&mut self, generation: u64, outcome: &Outcome) -> Option<Next> {
        if generation != self.generation || self.running.take().is_none() {
            return None;
        }
        Some(self.restarts.end(outcome, Instant::now()))
    }
}

impl Actor for Spoke {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        tracing::info!(hosts = self.spoke.endpoint.hosts(), "starting");
        self.start(Child::Reader, context);
        self.start(Child::Writer, context);
    }
}

impl Handler<ChildExited> for Spoke {
    type Result = ();

    fn handle(&mut self, exited: ChildExited, context: &mut Self::Context) {
        let ChildExited { child, generation, outcome } = exited;
        let (next, direction) = match child {
            Child::Reader => (self.reader.exited(generation, &outcome), Direction::Uplink),
            Child::Writer => (self.writer.exited(generation, &outcome), Direction::Downlink),
        };
        let Some(next) = next else { return };
        let cell = self.spoke.status.link(direction);
        let link = direction.as_str();
        let error = outcome.reason();
        let (state, delay) = match next {
            Next::Nothing => return self.end_if_idle(context),
            Next::After(delay) => {
                tracing::warn!(link, generation, error, ?delay, "link failed, starting again");
                (State::Backoff, delay)
            }
            Next::Halt(delay) => {
                tracing::error!(link, generation, error, ?delay, "link cannot work");
                (State::Halted, delay)
            }
        };
        cell.failed(error);
        cell.set_state(state);
        context.run_later(delay, move |spoke, context| spoke.start(child, context));
        self.end_if_idle(context);
    }
}

impl Handler<Stop> for Spoke {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Self::Context) {
        self.stopping = true;
        if let Some(reader) = &self.reader.running {
            reader.do_send(StopChild);
        }
        if let Some(writer) = &self.writer.running {
            writer.do_send(StopChild);
        }
        self.end_if_idle(context);
    }
}
