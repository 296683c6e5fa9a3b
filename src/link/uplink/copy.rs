//! The first copy of a spoke's own zone to the hub, and the comparison after a lost position.

use tokio_util::sync::CancellationToken;

use super::SpokeSource;
use crate::link::apply::mark::Mark;
use crate::link::copy::{Ended, Job};
use crate::link::lifecycle::Link;
use crate::link::reached::Waited;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{Part, Reconciling};
use crate::observe::status::State;
use crate::rules::copy::{Policy, Remembered};
use crate::rules::names::Direction;

impl Link<'_, SpokeSource> {
    /// Copies the spoke's own zone up. In a first copy, the spoke's documents win over the hub's documents. With
    /// `only_new`, parts copied before wait for a comparison.
    pub(super) async fn copy_own_zone(&mut self, only_new: bool, stop: &CancellationToken) -> Result<Ended, Error> {
        let (spoke, namespaces) = (self.spoke, self.source.server.namespaces().to_vec());
        let reconciling = if only_new { Reconciling::No } else { self.checkpoint().reconciling };
        if reconciling == Reconciling::No {
            self.finish_empty(&[(&spoke.zone, Policy::up(false))], stop).await?;
        }
        // One part at a time, so that an interrupted copy resumes at the part.
        for (number, namespace) in (0u16..).zip(&namespaces) {
            let part = Part::new(namespace, &spoke.zone);
            let checkpoint = self.checkpoint();
            let copied = checkpoint.copied.contains(&part);
            let remembered = Remembered { copied, left: checkpoint.left.contains(&part) };
            if !remembered.is_due(only_new) {
                continue;
            }
            // A comparison for an operator or after a restore leaves the link's position valid.
            if !reconciling.keeps_position() {
                self.set_incomplete();
            }
            let is_first = reconciling == Reconciling::No;
            self.cell().set_state(if is_first { State::InitialSync } else { State::Reconciling });
            // Later changes of the zone by hub applications must come down: otherwise the copy would overwrite the
            // changes unseen.
            let anchored = spoke.pair.carried(Direction::Downlink).anchored(stop);
            if spoke.patiently(Direction::Uplink, anchored).await == Waited::Stopped {
                return Ok(Ended::Stopped);
            }
            let job = Job {
                namespace: number,
                zone: spoke.zone.clone(),
                within: vec![spoke.zone.clone()],
                policy: Policy::up(remembered.left),
                can_wait: reconciling.keeps_position(),
                source: self.source.server.clone(),
                destination: self.destination_server(),
            };
            let ended = self.copy_part(&job, stop).await?;
            if ended != Ended::Done {
                return Ok(ended);
            }
        }
        // The saved mark ends the reconcile.
        if reconciling != Reconciling::No {
            self.save(Some(Mark::Reconciled)).await?;
            self.cell().set_comparing(false);
        }
        Ok(Ended::Done)
    }
}
