//! Watches the configuration file for changes (`reload_on_change`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, channel};

/// Quiet time before the file is read. Editors write a file in several steps, and a file read in between would be
/// incomplete.
const QUIET: Duration = Duration::from_millis(500);

pub(super) struct Watched {
    changes: Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Watched {
    /// Watches a file by way of its folder, because many editors replace the file by a new one. Fails if the folder
    /// cannot be watched.
    pub(super) fn new(file: &Path) -> Result<Self> {
        let (sender, changes) = channel(1);
        let name = file.file_name().context("the path of the configuration has no file name")?.to_owned();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let concerns = |event: &notify::Event| event.paths.iter().any(|path| path.file_name() == Some(&name));
            if event.is_ok_and(|event| !event.kind.is_access() && concerns(&event)) {
                // The channel holds one notice: a second one would say the same, and without a listener none is needed.
                match sender.try_send(()) {
                    Ok(()) | Err(TrySendError::Full(()) | TrySendError::Closed(())) => {}
                }
            }
        })?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self { changes, _watcher: watcher })
    }

    /// Returns after a change of the file, as soon as the file has been quiet for [`QUIET`].
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {}
    }
}
