//! `spokesync run`: everything, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::Exit;
use crate::actors::coordinator::{Coordinator, Handles, Shutdown};
use crate::config::{Config, Source};
use crate::http;
use crate::mongo::server::Endpoint;
use crate::observe::logs;

/// How often the reference container's lines are looked for.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(config: &Config) -> Exit {
    logs::start(&config.log);
    // Actors stay on this thread; loops and the driver run on the pool.
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the operating system gives threads")
    };
    match actix::System::with_tokio_rt(runtime).block_on(serve(config)) {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot run");
            Exit::Failed
        }
    }
}

async fn serve(config: &Config) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen()?;
    let handles = Handles::new(config);
    let server = http::start(&config.http, handles.board.clone())
        .with_context(|| format!("http.listen: cannot listen on {}", config.http.listen))?;
    let http = server.handle();
    let serving = actix::spawn(server);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %config.http.listen, "spokesync");
    let coordinator = Coordinator::start(handles.clone());
    if config.source == Source::Environment {
        actix::spawn(say_ready(handles));
    }
    signals.next().await;
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

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
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
    for spoke in &handles.spokes {
        reached(spoke.endpoint.clone(), "Ready Edge").await;
    }
    while !handles.board.view().not_ready().is_empty() {
        tokio::time::sleep(READY_INTERVAL).await;
    }
    println!("Ready...");
}
