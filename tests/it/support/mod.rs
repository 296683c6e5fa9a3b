//! What the tests stand on: replica sets, the program between them, and ways to wait and to compare.

pub mod browser;
pub mod events;
pub mod site;

use std::time::{Duration, Instant};

pub use site::Site;

/// How long anything may take before a test gives up. Nothing takes so long but on a machine that is busy with other
/// things.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until something is so, and panics with `what` if it does not become so.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it did not become so that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
