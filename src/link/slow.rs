//! Shows that a link waits for the writes of its destination.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::observe::status::{Cell, Waits};

/// Time after which a wait is shown as a standstill.
const SLOW: Duration = Duration::from_secs(8);

/// Awaits something that writes. If it takes long, the status and the log say `what` is waited for.
pub(super) async fn shown<T>(cell: &Cell, what: impl Fn() -> String, writing: impl Future<Output = T>) -> T {
    tokio::pin!(writing);
    let begun = Instant::now();
    loop {
        tokio::select! {
            done = &mut writing => {
                cell.moves(Waits::Destination);
                return done;
            }
            () = tokio::time::sleep(SLOW) => {
                let what = format!("{} after {} s", what(), begun.elapsed().as_secs());
                cell.stands_still(Waits::Destination, begun, &what);
            }
        }
    }
}
