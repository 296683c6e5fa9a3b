//! A wire that can be made slow, be cut, or swallow everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the wire does with the bytes of every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// It passes them on.
    Open,
    /// It passes them on after this time, in each direction.
    Slow(Duration),
    /// It keeps every connection and passes nothing on.
    BlackHole,
    /// It closes every connection, and accepts none.
    Cut,
}

/// A wire to a server on this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    wire: Arc<watch::Sender<Wire>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A wire to this port.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let port = listener.local_addr()?.port();
        let wire = Arc::new(watch::Sender::new(Wire::Open));
        let state = wire.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *state.borrow() != Wire::Cut {
                    tokio::spawn(connect(near, SocketAddr::from(([127, 0, 0, 1], target)), state.subscribe()));
                }
            }
        });
        Ok(Self { port, wire, accepting })
    }

    /// A connection string for the server at the other end, which does not look for other ways to it.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// From now on the wire does this.
    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.wire.send_replace(Wire::Cut);
    }
}

async fn connect(near: TcpStream, target: SocketAddr, wire: watch::Receiver<Wire>) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let mut cut = wire.clone();
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = carry(near_in, far_out, wire.clone()) => {}
        () = carry(far_in, near_out, wire) => {}
        _ = cut.wait_for(|wire| *wire == Wire::Cut) => {}
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut wire: watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer).await else { return };
        let state = *wire.borrow();
        if let Wire::Slow(delay) = state {
            tokio::time::sleep(delay).await;
        }
        if wire.wait_for(|wire| *wire != Wire::BlackHole).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
