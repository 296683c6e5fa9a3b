//! Support for the tests: replica sets, the program between them, waits and comparisons.

pub mod browser;
pub mod bytes;
pub mod events;
pub mod site;

use std::time::{Duration, Instant};

pub use site::Site;

/// Time limit for every wait of a test. Only a machine that is busy with other work comes close to the limit.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until the condition is true, and panics with `what` after [`LIMIT`].
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so().await {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
