//! What the fan-out has for one spoke and its writer has not taken yet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::link::hub::feed::Routed;
use crate::observe::status::spoke::Depth;
use crate::rules::position::Position;
use crate::rules::queue::{Full, Queue, Weight};
use crate::rules::route::{Routes, SpokeId};

/// How much may wait for one spoke. What waits is shared by all spokes that wait for it.
const CAPACITY: Weight = Weight { events: 50_000, bytes: 24_000_000 };

/// One reply of the hub's change stream, as far as it concerns one spoke.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The reply, if any of it concerns the spoke.
    pub(crate) routed: Option<(Arc<Routed>, SpokeId)>,
    /// By which routes that was decided.
    pub(crate) routes: Arc<Routes>,
    /// The namespaces whose collection was dropped or renamed at the hub meanwhile.
    pub(crate) lost_collections: Vec<u16>,
    /// Where the hub's stream stands after it.
    pub(crate) end: Position,
}

/// A spoke's queue at the fan-out.
pub(crate) struct Inbox {
    queue: Mutex<Queue<Delivery>>,
    changed: Notify,
    /// Tells the fan-out that something was taken out of it, or is waited for.
    taken: Arc<Notify>,
    /// The writer has nothing to do.
    waiting: AtomicBool,
    /// It remembered nothing when it began to wait.
    forgetful: AtomicBool,
    detached: AtomicBool,
    shown: Depth,
}

impl Inbox {
    /// An empty one, whose fill is shown there, and that tells by `taken` when something is taken out of it, or waited for.
    pub(super) fn new(shown: Depth, taken: Arc<Notify>) -> Self {
        shown.set(Weight::default(), CAPACITY);
        Self {
            queue: Mutex::new(Queue::new(CAPACITY)),
            changed: Notify::new(),
            taken,
            waiting: AtomicBool::new(false),
            forgetful: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            shown,
        }
    }

    /// True if its writer waits for something to do.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// True if its writer has applied all that ever came, and remembers no hub edit: then the spoke's own changes that come back from
    /// now on would be skipped, as long as no hub edit comes before them. Asked by who fills it.
    pub(super) fn needs_no_own_changes(&self) -> bool {
        // In this order: what is no longer in the queue was taken out by a writer that did not wait.
        self.queue().is_empty() && self.is_awaited() && self.forgetful.load(Ordering::Acquire)
    }

    /// True if this would be accepted.
    pub(super) fn has_room_for(&self, delivery: &Delivery) -> bool {
        self.queue().has_room_for(delivery.weight())
    }

    /// Adds what the fan-out has. `false` if the spoke is too far behind for it: then nothing more will come.
    pub(super) fn push(&self, delivery: Delivery) -> bool {
        let accepted = {
            let mut queue = self.queue();
            let weight = delivery.weight();
            match queue.last_mut().filter(|last| last.is_covered_by(&delivery)) {
                Some(last) => {
                    *last = delivery;
                    true
                }
                None => match queue.push(delivery, weight) {
                    Ok(()) => true,
                    Err(Full(_)) => false,
                },
            }
        };
        self.show();
        if !accepted {
            self.detach();
        }
        self.changed.notify_one();
        accepted
    }

    /// Nothing more will come.
    pub(super) fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// The next delivery; `None` after the last one of a spoke that was detached. The writer tells whether it is `forgetful`: all that it
    /// has taken out is applied, and no hub edit of it may meet an own change any more.
    pub(crate) async fn next(&self, forgetful: bool) -> Option<Delivery> {
        loop {
            if let Some(delivery) = self.try_next() {
                return Some(delivery);
            }
            if self.detached.load(Ordering::Acquire) {
                return self.try_next();
            }
            self.forgetful.store(forgetful, Ordering::Release);
            self.waiting.store(true, Ordering::Release);
            self.taken.notify_one();
            self.changed.notified().await;
            self.waiting.store(false, Ordering::Release);
        }
    }

    /// The next delivery, if one is there.
    pub(crate) fn try_next(&self) -> Option<Delivery> {
        let next = self.queue().pop();
        self.show();
        self.taken.notify_one();
        next
    }

    fn show(&self) {
        let queue = self.queue();
        self.shown.set(queue.weight(), queue.capacity());
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Delivery>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Delivery {
    /// Of positions alone only the last one matters, unless it was routed otherwise: then what lies before it may lack something.
    fn is_covered_by(&self, later: &Self) -> bool {
        let says_nothing = |delivery: &Self| delivery.routed.is_none() && delivery.lost_collections.is_empty();
        says_nothing(self) && says_nothing(later) && Arc::ptr_eq(&self.routes, &later.routes)
    }

    fn weight(&self) -> Weight {
        self.routed.as_ref().map_or(Weight::default(), |(routed, spoke)| routed.weight(*spoke))
    }
}
