//! `spokesync run`: starts the actors and the HTTP interface, reloads on SIGHUP, and stops on SIGTERM or SIGINT.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::Exit;
use super::watch::Watched;
use crate::actors::coordinator::{Coordinator, Reload, Shutdown};
use crate::actors::handles::Handles;
use crate::config::environment::Variables;
use crate::config::{Config, Source};
use crate::http;
use crate::mongo::endpoint::Endpoint;
use crate::observe::logs::{self, Logs};

/// Interval of the checks behind the reference container's "Ready" lines.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the process until SIGTERM or SIGINT.
pub(super) fn run(config: &Config) -> Exit {
    let logs = match logs::start(&config.log) {
        Ok(logs) => logs,
        Err(invalid) => {
            eprintln!("{invalid}");
            return Exit::Usage;
        }
    };
    // Actors run on this thread; loops and the driver run on the thread pool.
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the operating system gives threads")
    };
    match actix::System::with_tokio_rt(runtime).block_on(serve(config, logs)) {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot run");
            Exit::Failed
        }
    }
}

async fn serve(config: &Config, logs: Logs) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen(config)?;
    // Before anything starts: the address may be taken.
    let listener = TcpListener::bind(config.http.listen)
        .with_context(|| format!("http.listen: cannot listen on {}", config.http.listen))?;
    let handles = Handles::new(config);
    let coordinator = Coordinator::start(handles.clone(), config.clone());
    let server = http::start(&config.http, listener, handles.board.clone(), coordinator.clone(), logs)
        .context("the HTTP interface does not start")?;
    // From here on the process serves requests and signals.
    let http = server.handle();
    let serving = actix::spawn(server);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %config.http.listen, "spokesync");
    say_source(&config.source);
    if config.source == Source::Environment {
        actix::spawn(say_ready(handles.clone()));
    }
    let mut present = config.clone();
    loop {
        let wish = signals.next().await;
        if wish == Wish::Stop {
            break;
        }
        if let Some(config) = read_again(&present, wish, &handles) {
            present = config.clone();
            signals.watch(&present);
            coordinator.do_send(Reload(Box::new(config)));
        }
    }
    // The actors stop first: the HTTP interface shows their state to the end.
    let (done, left) = oneshot::channel();
    coordinator.do_send(Shutdown { done });
    let left = left.await.context("the coordinator ended before the shutdown was complete")?;
    http.stop(false).await;
    drop(serving);
    if left.is_empty() {
        tracing::info!("stopped");
        Ok(Exit::Done)
    } else {
        tracing::error!(left = left.join(", "), "stopped, but some actors did not end in time");
        Ok(Exit::Failed)
    }
}

/// Says which configuration is used, where two could be meant.
fn say_source(source: &Source) {
    match source {
        Source::File(file) if Variables::of_this_process().describe_a_spoke() => tracing::warn!(
            file = %file.display(),
            "the file is used; the environment variables ZONENAME, WATCHZONES, CONSTREDGE and CONSTRFAR are ignored"
        ),
        Source::File(file) => tracing::info!(file = %file.display(), "configuration"),
        Source::Environment => tracing::info!("configuration from the environment variables: there is no spokes.toml"),
    }
}

/// Reads the configuration file again. `None` if nothing is to be applied: an invalid file changes nothing, and other
/// credentials alone do not apply a file that an operator has changed but not asked for.
fn read_again(present: &Config, wish: Wish, handles: &Handles) -> Option<Config> {
    let Source::File(file) = &present.source else {
        tracing::warn!("the configuration comes from the environment, so there is no file to read again");
        return None;
    };
    let read = crate::config::load(Some(file), &Variables::of_this_process());
    handles.board.set_configuration_error(read.as_ref().err().map(ToString::to_string));
    match read {
        Ok(config) if wish == Wish::Reload || config.has_the_text_of(present) => Some(config),
        Ok(_) => {
            tracing::warn!("a file with credentials has changed, but so has the configuration: SIGHUP applies both");
            None
        }
        Err(invalid) => {
            tracing::error!(error = %invalid, "the configuration is invalid, keeping the former one");
            None
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    /// Read the configuration again.
    Reload,
    /// A file with credentials has changed.
    Renew,
}

/// Signals of the operating system, changes of the files with credentials, and with `reload_on_change` changes of the
/// configuration file.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    file: Option<Watched>,
    credentials: Option<Watched>,
    /// The files with credentials.
    watched: BTreeSet<PathBuf>,
}

impl Signals {
    fn listen(config: &Config) -> anyhow::Result<Self> {
        let file = match &config.source {
            Source::File(file) if config.reload_on_change => {
                Some(Watched::new(std::iter::once(file.as_path())).context("cannot watch the configuration file")?)
            }
            _ => None,
        };
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let mut signals = Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            file,
            credentials: None,
            watched: BTreeSet::new(),
        };
        signals.watch(config);
        Ok(signals)
    }

    /// Watches the files with credentials that the configuration names. Without this, SIGHUP has the same effect.
    fn watch(&mut self, config: &Config) {
        let files: BTreeSet<PathBuf> = config.credentials_files().map(Path::to_owned).collect();
        // The same watcher goes on if it can, so that no change is missed.
        if files == self.watched {
            return;
        }
        self.credentials = None;
        self.watched = BTreeSet::new();
        if files.is_empty() {
            return;
        }
        match Watched::new(files.iter().map(PathBuf::as_path)) {
            Ok(watched) => (self.credentials, self.watched) = (Some(watched), files),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "files with credentials are not watched"),
        }
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
            () = changed(self.file.as_mut()) => Wish::Reload,
            // Both kinds of files may change together, and then the configuration must not be missed.
            () = changed(self.credentials.as_mut()) => if self.file.is_some() { Wish::Reload } else { Wish::Renew },
        }
    }
}

async fn changed(file: Option<&mut Watched>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// Prints the reference container's lines for deployment tools: "Ready Far" when the hub answers, "Ready Edge" when the
/// spoke answers, "Ready..." when all links are streaming.
async fn say_ready(handles: Handles) {
    let reached = |endpoint: Arc<Endpoint>, line: &'static str| async move {
        while endpoint.connect().await.is_err() {
            tokio::time::sleep(READY_INTERVAL).await;
        }
        println!("{line}");
    };
    reached(handles.hub.clone(), "Ready Far").await;
    for spoke in handles.spokes() {
        reached(spoke.endpoint.clone(), "Ready Edge").await;
    }
    while !handles.board.view().not_ready().is_empty() {
        tokio::time::sleep(READY_INTERVAL).await;
    }
    println!("Ready...");
}
