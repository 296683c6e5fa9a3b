//! Notices that the configuration file was changed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, channel};

/// Whoever writes a file often does so in several steps: it is read once nothing has happened for so long.
const QUIET: Duration = Duration::from_millis(500);

/// A file that is watched.
pub(super) struct Watched {
    changes: Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Watched {
    /// Watches this file. Its folder is what is watched, as editors put a new file in the place of the old one.
    pub(super) fn new(file: &Path) -> Result<Self> {
        let (sender, changes) = channel(1);
        let name = file.file_name().context("the configuration has no name")?.to_owned();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let concerns = |event: &notify::Event| event.paths.iter().any(|path| path.file_name() == Some(&name));
            if event.is_ok_and(|event| !event.kind.is_access() && concerns(&event)) {
                // One that waits is as good as two, and once nobody listens none is needed.
                match sender.try_send(()) {
                    Ok(()) | Err(TrySendError::Full(()) | TrySendError::Closed(())) => {}
                }
            }
        })?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self { changes, _watcher: watcher })
    }

    /// Ends when the file was changed, and no longer is being changed.
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {}
    }
}
