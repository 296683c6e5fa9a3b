//! Keeps the status up to date about a source's oplog window.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::mongo::oplog;
use crate::mongo::server::Server;
use crate::observe::status::Window;

const INTERVAL: Duration = Duration::from_secs(10);

/// Shows the source's oplog window in the status, until the handle is dropped.
pub(super) fn watch(server: &Server, shown: &Window) -> AbortOnDropHandle<()> {
    let (server, shown) = (server.clone(), shown.clone());
    let watching = async move {
        loop {
            match oplog::window(&server).await {
                Ok(window) => shown.set(window.map(|window| (window.earliest, window.latest))),
                Err(error) => tracing::debug!(%error, "the oplog window is not known"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    AbortOnDropHandle::new(tokio::spawn(watching.in_current_span()))
}
