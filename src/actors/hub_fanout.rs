//! Runs the hub's change stream, which all spokes share.

use std::sync::Arc;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::coordinator::FanoutExited;
use super::run_loop;
use super::spoke::StopChild;
use crate::link::hub::fanout::{self, Fanout};
use crate::mongo::endpoint::Endpoint;
use crate::observe::status::Cell;

/// Runs the fan-out's loop once. The coordinator replaces the actor when the loop ends.
pub(super) struct HubFanout {
    pub(super) fanout: Arc<Fanout>,
    pub(super) hub: Arc<Endpoint>,
    pub(super) cell: Arc<Cell>,
    pub(super) generation: u64,
    pub(super) parent: Recipient<FanoutExited>,
    pub(super) stop: CancellationToken,
}

impl Actor for HubFanout {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let (fanout, hub) = (self.fanout.clone(), self.hub.clone());
        let (cell, stop) = (self.cell.clone(), self.stop.clone());
        let work = async move { fanout::run(&fanout, &hub, &cell, &stop).await };
        run_loop(self, context, self.cell.pulse().clone(), work, |actor, outcome| {
            actor.parent.do_send(FanoutExited { generation: actor.generation, outcome });
        });
    }
}

impl Handler<StopChild> for HubFanout {
    type Result = ();

    fn handle(&mut self, _: StopChild, _: &mut Self::Context) {
        self.stop.cancel();
    }
}
