//! Watches files for changes: the configuration (`reload_on_change`), and the files with credentials.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, channel};

/// Quiet time before the files are read. Editors write a file in several steps, and a file read in between would be
/// incomplete.
const QUIET: Duration = Duration::from_millis(500);

pub(super) struct Watched {
    changes: Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Watched {
    /// Watches files by way of their folders, because many editors and rotation tools replace a file by a new one.
    ///
    /// # Errors
    /// If a folder cannot be watched.
    pub(super) fn new<'f>(files: impl Iterator<Item = &'f Path>) -> Result<Self> {
        let (sender, changes) = channel(1);
        let (mut names, mut folders): (HashSet<OsString>, BTreeSet<PathBuf>) = Default::default();
        for file in files {
            names.insert(file.file_name().context("a path has no file name")?.to_owned());
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            folders.insert(folder.to_owned());
        }
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // A mounted secret is a link into a folder such as `..data`, which is replaced as a whole.
            let concerns = |path: &Path| {
                let name = path.file_name().unwrap_or_default();
                names.contains(name) || name.as_encoded_bytes().starts_with(b"..")
            };
            if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(|path| concerns(path))) {
                // The channel holds one notice: a second one would say the same, and without a listener none is needed.
                match sender.try_send(()) {
                    Ok(()) | Err(TrySendError::Full(()) | TrySendError::Closed(())) => {}
                }
            }
        })?;
        for folder in folders {
            let watched = watcher.watch(&folder, RecursiveMode::NonRecursive);
            watched.with_context(|| format!("cannot watch {}", folder.display()))?;
        }
        Ok(Self { changes, _watcher: watcher })
    }

    /// Returns after a change of a file, as soon as the files have been quiet for [`QUIET`].
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {}
    }
}
