//! `spokesync run`: everything, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
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
use crate::mongo::server::Endpoint;
use crate::observe::logs::{self, Logs};

/// How often the reference container's lines are looked for.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(config: &Config) -> Exit {
    let logs = logs::start(&config.log);
    // Actors stay on this thread; loops and the driver run on the pool.
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
    let handles = Handles::new(config);
    let coordinator = Coordinator::start(handles.clone(), config.clone());
    let server = http::start(&config.http, handles.board.clone(), coordinator.clone(), logs)
        .with_context(|| format!("http.listen: cannot listen on {}", config.http.listen))?;
    let http = server.handle();
    let serving = actix::spawn(server);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %config.http.listen, "spokesync");
    if config.source == Source::Environment {
        actix::spawn(say_ready(handles.clone()));
    }
    while signals.next().await == Wish::Reload {
        reload(config, &handles, &coordinator);
    }
    let (done, left) = oneshot::channel();
    coordinator.do_send(Shutdown { done });
    let left = left.await.context("the coordinator did not live to the end")?;
    http.stop(false).await;
    drop(serving);
    if left.is_empty() {
        tracing::info!("stopped");
        Ok(Exit::Done)
    } else {
        tracing::error!(left = left.join(", "), "stopped, but not everything in time");
        Ok(Exit::Failed)
    }
}

/// Reads the file again. What cannot be used changes nothing.
fn reload(config: &Config, handles: &Handles, coordinator: &Addr<Coordinator>) {
    let Source::File(file) = &config.source else {
        tracing::warn!("there is no file that could be read again: the configuration is in the environment");
        return;
    };
    let read = crate::config::load(Some(file), &Variables::of_this_process());
    handles.board.set_configuration_error(read.as_ref().err().map(ToString::to_string));
    match read {
        Ok(config) => coordinator.do_send(Reload(Box::new(config))),
        Err(invalid) => tracing::error!(error = %invalid, "the configuration cannot be used, nothing is changed"),
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    Reload,
}

/// SIGTERM and SIGINT; SIGHUP, and changes of the file if they count.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    file: Option<Watched>,
}

impl Signals {
    fn listen(config: &Config) -> anyhow::Result<Self> {
        let file = match &config.source {
            Source::File(file) if config.reload_on_change => Some(Watched::new(file).context("cannot watch the file")?),
            _ => None,
        };
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            file,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
            () = changed(self.file.as_mut()) => Wish::Reload,
        }
    }
}

async fn changed(file: Option<&mut Watched>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// The lines of the reference container, which tools wait for.
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
