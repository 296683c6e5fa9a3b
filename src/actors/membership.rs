//! Runs the loop by which the process takes part in the cluster.

use std::sync::Arc;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::coordinator::MembershipExited;
use super::run_loop;
use super::spoke::StopChild;
use crate::cluster::desk::Desk;
use crate::cluster::membership::{self, Superior};
use crate::cluster::pace::Pace;
use crate::mongo::endpoint::Endpoint;
use crate::observe::pulse::Pulse;
use crate::observe::status::Board;

/// Runs the loop once. The coordinator replaces the actor when the loop ends.
pub(super) struct Membership {
    pub(super) desk: Arc<Desk>,
    pub(super) hub: Arc<Endpoint>,
    pub(super) board: Arc<Board>,
    pub(super) pace: Pace,
    pub(super) superior: Superior,
    pub(super) generation: u64,
    pub(super) parent: Recipient<MembershipExited>,
    pub(super) stop: CancellationToken,
}

impl Actor for Membership {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let (desk, hub, board) = (self.desk.clone(), self.hub.clone(), self.board.clone());
        let (pace, superior, stop) = (self.pace, self.superior.clone(), self.stop.clone());
        let pulse = Arc::<Pulse>::default();
        let beating = pulse.clone();
        let work = async move { membership::run(&desk, &hub, &board, &beating, pace, &superior, &stop).await };
        run_loop(self, context, pulse, work, |actor, outcome| {
            actor.parent.do_send(MembershipExited { generation: actor.generation, outcome });
        });
    }
}

impl Handler<StopChild> for Membership {
    type Result = ();

    fn handle(&mut self, _: StopChild, _: &mut Self::Context) {
        self.stop.cancel();
    }
}
