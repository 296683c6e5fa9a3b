//! Runs one spoke's uplink.

use std::sync::Arc;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::run_loop;
use super::spoke::{ChildExited, StopChild};
use crate::link;
use crate::rules::names::Direction;

/// Runs the uplink's loop once. The spoke replaces the actor when the loop ends.
pub(super) struct SpokeReader {
    pub(super) spoke: Arc<link::Shared>,
    pub(super) generation: u64,
    pub(super) parent: Recipient<ChildExited>,
    pub(super) stop: CancellationToken,
}

impl Actor for SpokeReader {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let (spoke, stop) = (self.spoke.clone(), self.stop.clone());
        let work = async move { link::uplink::run(&spoke, &stop).await };
        let pulse = self.spoke.status.link(Direction::Uplink).pulse().clone();
        run_loop(self, context, pulse, work, |reader, outcome| {
            reader.parent.do_send(ChildExited { link: Direction::Uplink, generation: reader.generation, outcome });
        });
    }
}

impl Handler<StopChild> for SpokeReader {
    type Result = ();

    fn handle(&mut self, _: StopChild, _: &mut Self::Context) {
        self.stop.cancel();
    }
}
