//! A wire to a server, which can be slowed, cut or silenced.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The behaviour of the wire for the bytes of every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Passes bytes on.
    Open,
    /// Passes bytes on with this delay in each direction, with any number of bytes in flight.
    Slow(Duration),
    /// The same, and carries at most this number of bytes a second in each direction of a connection.
    Narrow(Duration, u32),
    /// Keeps every connection and passes nothing on.
    BlackHole,
    /// Closes every connection, and accepts none.
    Cut,
}

/// A wire to a server on this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    wire: Arc<watch::Sender<Wire>>,
    counters: Arc<Counters>,
    accepting: JoinHandle<()>,
}

/// Bytes that a wire has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// To the server.
    pub to_server: u64,
    /// From the server.
    pub from_server: u64,
}

#[derive(Debug, Default)]
struct Counters {
    to_server: AtomicU64,
    from_server: AtomicU64,
}

/// Pieces in flight in each direction of a connection, at most.
const UNDER_WAY: usize = 512;

impl Proxy {
    /// Creates a wire to this port.
    ///
    /// # Errors
    /// If no port is free to listen on.
    pub async fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let port = listener.local_addr()?.port();
        let wire = Arc::new(watch::Sender::new(Wire::Open));
        let (state, counters) = (wire.clone(), Arc::<Counters>::default());
        let counting = counters.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *state.borrow() != Wire::Cut {
                    let target = SocketAddr::from(([127, 0, 0, 1], target));
                    tokio::spawn(connect(near, target, state.subscribe(), counting.clone()));
                }
            }
        });
        Ok(Self { port, wire, counters, accepting })
    }

    /// Bytes that the wire has taken so far in each direction.
    pub fn bytes(&self) -> Bytes {
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Bytes { to_server: counted(&self.counters.to_server), from_server: counted(&self.counters.from_server) }
    }

    /// A connection string for the server at the other end. The driver looks for no other route to the server.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// Changes the behaviour of the wire, for open connections, too.
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

async fn connect(near: TcpStream, target: SocketAddr, wire: watch::Receiver<Wire>, counters: Arc<Counters>) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let mut cut = wire.clone();
    for stream in [&near, &far] {
        // Without `nodelay`, a piece may wait for the next piece, longer than the wire's delay.
        drop(stream.set_nodelay(true));
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = carry(near_in, far_out, wire.clone(), &counters.to_server) => {}
        () = carry(far_in, near_out, wire, &counters.from_server) => {}
        _ = cut.wait_for(|wire| *wire == Wire::Cut) => {}
    }
}

/// Bytes in flight, with the time at which they are due at the other end.
type Piece = (Instant, Vec<u8>);

async fn carry(
    from: impl AsyncReadExt + Unpin,
    to: impl AsyncWriteExt + Unpin,
    wire: watch::Receiver<Wire>,
    carried: &AtomicU64,
) {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    tokio::join!(take(from, sender, wire.clone(), carried), give(receiver, to, wire));
}

async fn take(
    mut from: impl AsyncReadExt + Unpin,
    pieces: mpsc::Sender<Piece>,
    wire: watch::Receiver<Wire>,
    carried: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    // The time at which all bytes taken so far have left.
    let mut free = Instant::now();
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer).await else { return };
        carried.fetch_add(bytes as u64, Ordering::Relaxed);
        let (delay, takes) = match *wire.borrow() {
            Wire::Slow(delay) => (delay, Duration::ZERO),
            Wire::Narrow(delay, rate) => (delay, Duration::from_secs_f64(bytes as f64 / f64::from(rate))),
            Wire::Open | Wire::BlackHole | Wire::Cut => (Duration::ZERO, Duration::ZERO),
        };
        free = free.max(Instant::now()) + takes;
        if pieces.send((free + delay, buffer[..bytes].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn give(mut pieces: mpsc::Receiver<Piece>, mut to: impl AsyncWriteExt + Unpin, mut wire: watch::Receiver<Wire>) {
    while let Some((due, bytes)) = pieces.recv().await {
        tokio::time::sleep_until(due).await;
        if wire.wait_for(|wire| *wire != Wire::BlackHole).await.is_err() || to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
