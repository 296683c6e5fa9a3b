//! Tells an operator that a source's change stream brings nothing because no majority of the replica set confirms
//! writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::mongo::oplog;
use crate::mongo::server::Server;
use crate::observe::status::{Cell, Waits};
use crate::rules::standstill::Watch;

/// Two looks in a row tell a standstill, well within ten seconds.
const INTERVAL: Duration = Duration::from_secs(4);

/// Watches a source for the status of a link or of the hub's change stream, until the handle is dropped.
pub(super) fn watch(server: &Server, cell: &Arc<Cell>) -> AbortOnDropHandle<()> {
    let (server, cell) = (server.clone(), cell.clone());
    let watching = async move {
        let mut watch = Watch::default();
        loop {
            match oplog::writes(&server).await {
                Ok(Some(writes)) => match watch.see(writes, Instant::now()) {
                    Some(since) => cell.stands_still(Waits::Source, since, &told(&server)),
                    None => cell.moves(Waits::Source),
                },
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the newest writes are not known"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    AbortOnDropHandle::new(tokio::spawn(watching.in_current_span()))
}

fn told(server: &Server) -> String {
    format!(
        "{}: no majority of the replica set confirms writes, so its changes wait: see rs.status() for members that are \
         down",
        server.name()
    )
}
