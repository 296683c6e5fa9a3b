//! The bounded queue of a spoke: deliveries of the fan-out, not yet taken by the spoke's writer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::routed::Routed;
use crate::observe::status::spoke::Depth;
use crate::rules::position::Position;
use crate::rules::queue::{Full, Queue, Weight};
use crate::rules::route::{Routes, SpokeId};

/// Capacity of an inbox. A reply that waits for several spokes is in memory once.
const CAPACITY: Weight = Weight { events: 50_000, bytes: 24_000_000 };

/// A reply of the hub's change stream for a single spoke.
#[derive(Clone, Debug)]
pub(in crate::link) struct Delivery {
    /// The reply; `None` if no event concerns the spoke.
    pub(in crate::link) routed: Option<(Arc<Routed>, SpokeId)>,
    /// The routes used for the reply.
    pub(in crate::link) routes: Arc<Routes>,
    /// The namespaces of collections dropped or renamed at the hub meanwhile.
    pub(in crate::link) lost_collections: Vec<u16>,
    /// The stream's position after the reply.
    pub(in crate::link) end: Position,
}

pub(in crate::link) struct Inbox {
    queue: Mutex<Queue<Delivery>>,
    changed: Notify,
    /// Signals a taken delivery or an idle writer to the fan-out.
    taken: Arc<Notify>,
    /// The writer is idle.
    waiting: AtomicBool,
    /// The idle writer remembers no hub edit.
    forgetful: AtomicBool,
    detached: AtomicBool,
    shown: Depth,
}

impl Inbox {
    /// An empty inbox. `shown` shows the fill level. The inbox signals `taken` for each taken delivery and for an idle
    /// writer.
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

    /// True if the writer is idle.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// True if the writer has applied every delivery and remembers no hub edit: the writer would skip all own changes
    /// of the spoke before the next hub edit. Only for the fan-out, because only the fan-out fills the inbox.
    pub(super) fn needs_no_own_changes(&self) -> bool {
        // In this order: a writer leaves the idle state before taking a delivery. An idle writer after an empty queue
        // has therefore applied everything.
        self.queue().is_empty() && self.is_awaited() && self.forgetful.load(Ordering::Acquire)
    }

    pub(super) fn has_room_for(&self, delivery: &Delivery) -> bool {
        self.queue().has_room_for(delivery.weight())
    }

    /// Adds a delivery. Returns false, and detaches the inbox, if the queue is full.
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

    /// Ends the inbox: the writer receives the waiting deliveries and no others.
    pub(super) fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// True if the inbox gets no more deliveries.
    pub(in crate::link) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// The next delivery; `None` after the last delivery of a detached inbox. `forgetful`: the writer has applied every
    /// taken delivery, and no hub edit can meet one of the spoke's own changes any more.
    pub(in crate::link) async fn next(&self, forgetful: bool) -> Option<Delivery> {
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

    /// The next delivery, without waiting.
    pub(in crate::link) fn try_next(&self) -> Option<Delivery> {
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
    /// A delivery without events is replaced by the next delivery without events, unless the routes differ: the later
    /// position would cover changes with another routing.
    fn is_covered_by(&self, later: &Self) -> bool {
        let says_nothing = |delivery: &Self| delivery.routed.is_none() && delivery.lost_collections.is_empty();
        says_nothing(self) && says_nothing(later) && Arc::ptr_eq(&self.routes, &later.routes)
    }

    fn weight(&self) -> Weight {
        self.routed.as_ref().map_or(Weight::default(), |(routed, spoke)| routed.weight(*spoke))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::hub::routed::tests::{routed, routes};
    use bson::rawdoc;

    fn inbox() -> Inbox {
        Inbox::new(Depth::default(), Arc::default())
    }

    fn place(seconds: u32, routes: &Arc<Routes>) -> Delivery {
        let data = format!("82{seconds:08X}000000012B0229296E04");
        let end = Position::from_token(&rawdoc! { "_data": data.as_str() }).expect("a token");
        Delivery { routed: None, routes: routes.clone(), lost_collections: Vec::new(), end }
    }

    #[test]
    fn of_places_alone_only_the_last_one_waits() {
        let (inbox, routes) = (inbox(), routes());
        assert!(inbox.push(place(1, &routes)) && inbox.push(place(2, &routes)));
        assert_eq!(inbox.try_next().expect("one waits").end, place(2, &routes).end);
        assert!(inbox.try_next().is_none());
    }

    #[test]
    fn a_place_by_other_routes_or_with_a_lost_collection_waits_by_itself() {
        let (inbox, one, other) = (inbox(), routes(), routes());
        let lost = Delivery { lost_collections: vec![0], ..place(3, &other) };
        assert!(inbox.push(place(1, &one)) && inbox.push(place(2, &other)) && inbox.push(lost));
        assert_eq!(std::iter::from_fn(|| inbox.try_next()).count(), 3);
    }

    #[test]
    fn a_full_inbox_refuses_and_is_detached() {
        let inbox = inbox();
        let reply = Arc::new(routed());
        let end = reply.reply.end().clone();
        let delivery =
            Delivery { routed: Some((reply.clone(), 0)), routes: reply.routes.clone(), lost_collections: vec![], end };
        let weight = delivery.weight();
        let fitting = (CAPACITY.events / weight.events).min(CAPACITY.bytes / weight.bytes);
        for _ in 0..fitting {
            assert!(inbox.push(delivery.clone()));
        }
        assert!(!inbox.has_room_for(&delivery) && !inbox.push(delivery));
        assert!(inbox.is_detached());
        assert_eq!(std::iter::from_fn(|| inbox.try_next()).count(), fitting, "what was accepted is still given out");
    }

    #[tokio::test]
    async fn an_idle_writer_is_known_and_a_busy_one_needs_its_own_changes() {
        let (inbox, routes) = (Arc::new(inbox()), routes());
        assert!(!inbox.needs_no_own_changes(), "nobody waits");
        let writer = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.next(true).await }
        });
        while !inbox.is_awaited() {
            tokio::task::yield_now().await;
        }
        assert!(inbox.needs_no_own_changes());
        inbox.push(place(1, &routes));
        assert!(!inbox.needs_no_own_changes(), "a delivery waits");
        assert!(writer.await.expect("no panic").is_some());
        assert!(!inbox.is_awaited());
        inbox.detach();
        assert!(inbox.next(true).await.is_none());
    }
}
