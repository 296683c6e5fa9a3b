//! Runs one spoke's downlink.

use std::sync::Arc;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::run_loop;
use super::spoke::{ChildExited, StopChild};
use crate::link;
use crate::rules::names::Direction;

/// Runs the downlink's loop once. The spoke replaces the actor when the loop ends.
pub(super) struct SpokeWriter {
    pub(super) spoke: Arc<link::Shared>,
    pub(super) generation: u64,
    pub(super) parent: Recipient<ChildExited>,
    pub(super) stop: CancellationToken,
}

impl Actor for SpokeWriter {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let (spoke, stop) = (self.spoke.clone(), self.stop.clone());
        let work = async move { link::downlink::run(&spoke, &stop).await };
        let pulse = self.spoke.status.link(Direction::Downlink).pulse().clone();
        run_loop(self, context, pulse, work, |writer, outcome| {
            writer.parent.do_send(ChildExited { link: Direction::Downlink, generation: writer.generation, outcome });
        });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // Without a writer nothing empties the inbox.
        self.spoke.fanout.detach(&self.spoke.zone);
    }
}

impl Handler<StopChild> for SpokeWriter {
    type Result = ();

    fn handle(&mut self, _: StopChild, _: &mut Self::Context) {
        self.stop.cancel();
    }
}
