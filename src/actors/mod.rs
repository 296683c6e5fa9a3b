//! Who runs which loop, and what happens when it ends.
//!
//! ```text
//! Coordinator ─┬─ HubFanout                  one change stream of the hub, the spokes' inboxes
//!              └─ Spoke (one per zone) ─┬─ SpokeReader   uplink
//!                                       └─ SpokeWriter   downlink
//! ```
//!
//! A parent supervises: a child whose loop ends is replaced by a new value with a new generation, after a delay. What an
//! older generation still says is ignored. Actors only start and stop loops and pass messages; they await nothing, so they
//! always answer. No data passes through a mailbox, which actix does not bound (actix/actix#515).

pub mod coordinator;
pub mod hub_fanout;
mod restarts;
pub mod spoke;
mod spoke_reader;
mod spoke_writer;

use std::future::Future;

use actix::prelude::*;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

use crate::link::Stopped;
use crate::mongo::error::{Error, Failure};

/// How a child's loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to.
    Stopped,
    /// By this error.
    Failed(Failure, String),
    /// It panicked, with this message.
    Panicked(String),
}

impl Outcome {
    /// Why it ended, for the log and the status.
    pub fn reason(&self) -> &str {
        match self {
            Self::Stopped => "stopped",
            Self::Failed(_, reason) | Self::Panicked(reason) => reason,
        }
    }
}

/// Starts an actor inside a span, so that every line that it logs carries the span. `on_panic` is called if a handler of it
/// panics.
fn spawn<A: Actor<Context = Context<A>>>(span: Span, actor: A, on_panic: impl FnOnce(String) + 'static) -> Addr<A> {
    let context = Context::new();
    let address = context.address();
    let task = actix::spawn(context.into_future(actor).instrument(span));
    actix::spawn(async move {
        if let Err(error) = task.await
            && error.is_panic()
        {
            on_panic(panic_message(error.into_panic()));
        }
    });
    address
}

/// Runs a loop on the thread pool for as long as its actor lives, and says how it ended. A panic ends the loop alone.
fn run_loop<A, F>(actor: &A, context: &mut Context<A>, work: F, report: impl FnOnce(&mut A, Outcome) + 'static)
where
    A: Actor<Context = Context<A>>,
    F: Future<Output = Result<Stopped, Error>> + Send + 'static,
{
    let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
    let ended = task.into_actor(actor).map(|joined, actor: &mut A, context: &mut Context<A>| {
        let outcome = match joined {
            Ok(Ok(Stopped)) => Outcome::Stopped,
            Ok(Err(error)) => Outcome::Failed(error.failure(), error.to_string()),
            Err(error) if error.is_panic() => Outcome::Panicked(panic_message(error.into_panic())),
            Err(_) => return,
        };
        report(actor, outcome);
        context.stop();
    });
    context.spawn(ended);
}

fn panic_message(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}
