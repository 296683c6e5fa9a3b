//! Watches how far back a source's change stream can begin.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::mongo::oplog::window;
use crate::mongo::server::Server;
use crate::observe::status::Window;

/// How often it is asked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// Keeps what is shown of a source's oplog window up to date, until the handle is dropped.
pub(super) fn watch(server: &Server, shown: &Window) -> AbortOnDropHandle<()> {
    let (server, shown) = (server.clone(), shown.clone());
    let watching = async move {
        loop {
            match window(&server).await {
                Ok(window) => shown.set(window.map(|window| (window.earliest, window.latest))),
                Err(error) => tracing::debug!(%error, "the oplog window is not known"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    AbortOnDropHandle::new(tokio::spawn(watching.in_current_span()))
}
