//! The actors: an actor runs a loop, or supervises other actors and restarts their loops.
//!
//! ```text
//! Coordinator ─┬─ HubFanout                  one change stream of the hub, the spokes' inboxes
//!              ├─ Membership                 the process's part in the cluster: which spokes it runs
//!              └─ Spoke (one per zone) ─┬─ SpokeReader   uplink
//!                                       └─ SpokeWriter   downlink
//! ```
//!
//! A parent supervises: when a child's loop ends, the parent waits for a delay and starts a new actor as the next
//! generation. Messages of an older generation are ignored. Actors only start and stop loops and pass messages.
//! Handlers await nothing, so every actor answers immediately. Data never passes through a mailbox, because actix does
//! not bound mailboxes (actix/actix#515).

pub(crate) mod commands;
pub(crate) mod coordinator;
pub(crate) mod handles;
mod hub_fanout;
mod membership;
mod restarts;
pub(crate) mod spoke;
mod spoke_reader;
mod spoke_writer;
pub(crate) mod verification;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

use crate::link::Stopped;
use crate::mongo::error::{Error, Failure};
use crate::observe::pulse::Pulse;

/// A loop without a sign of life for 120 s is abandoned. No single call may take as long.
const SILENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stopped,
    /// Failed; the text describes the error.
    Failed(Failure, String),
    Panicked(String),
    /// Gave no sign of life for the given time.
    NoProgress(Duration),
}

impl Outcome {
    /// Describes the reason for the log and the status.
    pub(crate) fn reason(&self) -> Cow<'_, str> {
        match self {
            Self::Stopped => "stopped".into(),
            Self::Failed(_, reason) | Self::Panicked(reason) => reason.into(),
            Self::NoProgress(time) => format!("no progress for {} s", time.as_secs()).into(),
        }
    }
}

/// Starts an actor inside a span, which every log line of the actor then carries. `on_panic` runs if one of the actor's
/// handlers panics.
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

/// Runs a loop on the thread pool, and passes the outcome to `report`. The loop ends with its actor at the latest.
///
/// A panic ends the loop, not the process. Every await in a loop has a time limit; [`SILENCE`] is the last resort.
fn run_loop<A, F>(
    actor: &A,
    context: &mut Context<A>,
    pulse: Arc<Pulse>,
    work: F,
    report: impl FnOnce(&mut A, Outcome) + 'static,
) where
    A: Actor<Context = Context<A>>,
    F: Future<Output = Result<Stopped, Error>> + Send + 'static,
{
    pulse.beat();
    // The work, or the end of its signs of life: the first of both is the outcome.
    let watched = async move {
        tokio::select! {
            ended = work => Ok(ended),
            silence = pulse.stopped(SILENCE) => Err(silence),
        }
    };
    let task = AbortOnDropHandle::new(tokio::spawn(watched.in_current_span()));
    let ended = task.into_actor(actor).map(|joined, actor: &mut A, context: &mut Context<A>| {
        let outcome = match joined {
            Ok(Ok(Ok(Stopped))) => Outcome::Stopped,
            Ok(Ok(Err(error))) => Outcome::Failed(error.failure(), error.to_string()),
            Ok(Err(silence)) => Outcome::NoProgress(silence),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    /// An actor that runs one loop and sends the outcome.
    struct Runner<F> {
        work: Option<F>,
        pulse: Arc<Pulse>,
        ended: UnboundedSender<Outcome>,
    }

    impl<F: Future<Output = Result<Stopped, Error>> + Send + Unpin + 'static> Actor for Runner<F> {
        type Context = Context<Self>;

        fn started(&mut self, context: &mut Self::Context) {
            let work = self.work.take().expect("it is started once");
            run_loop(self, context, self.pulse.clone(), work, |runner, outcome| {
                runner.ended.send(outcome).expect("the test waits");
            });
        }
    }

    fn start(work: impl Future<Output = Result<Stopped, Error>> + Send + 'static) -> UnboundedReceiver<Outcome> {
        let (ended, outcome) = unbounded_channel();
        let pulse = Arc::<Pulse>::default();
        let runner = Runner { work: Some(Box::pin(work)), pulse, ended };
        spawn(tracing::Span::none(), runner, |message| panic!("the actor itself: {message}"));
        outcome
    }

    #[actix::test]
    async fn a_loop_that_panics_ends_alone_and_says_why() {
        let mut outcome = start(async { panic!("out of paper") });
        assert_eq!(outcome.recv().await, Some(Outcome::Panicked("panicked: out of paper".to_owned())));
        let mut outcome = start(async { Ok(Stopped) });
        assert_eq!(outcome.recv().await, Some(Outcome::Stopped));
    }

    #[actix::test]
    async fn an_actor_that_panics_is_reported() {
        struct Careless;
        impl Actor for Careless {
            type Context = Context<Self>;
            fn started(&mut self, _: &mut Self::Context) {
                panic!("fell over");
            }
        }
        let (sender, mut message) = unbounded_channel();
        spawn(tracing::Span::none(), Careless, move |panic| sender.send(panic).expect("the test waits"));
        assert_eq!(message.recv().await.as_deref(), Some("panicked: fell over"));
    }

    #[tokio::test]
    async fn silence_is_noticed_and_a_sign_of_life_is_none() {
        const LIMIT: Duration = Duration::from_millis(100);
        let pulse = Pulse::default();
        let beating = async {
            for _ in 0..20 {
                tokio::time::sleep(LIMIT / 10).await;
                pulse.beat();
            }
        };
        tokio::select! {
            biased;
            () = beating => {}
            silence = pulse.stopped(LIMIT) => panic!("it was not silent for {silence:?}"),
        }
        assert!(pulse.stopped(LIMIT).await >= LIMIT);
    }
}
