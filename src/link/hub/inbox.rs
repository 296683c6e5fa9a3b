//! The bounded queue of one spoke: deliveries of the fan-out that the spoke's writer has not taken yet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::routed::Routed;
use crate::observe::status::spoke::Depth;
use crate::rules::position::Position;
use crate::rules::queue::{Full, Queue, Weight};
use crate::rules::route::{Routes, SpokeId};

/// The most that waits for one spoke. Replies that wait for several spokes are in memory once.
const CAPACITY: Weight = Weight { events: 50_000, bytes: 24_000_000 };

/// One reply of the hub's change stream, as far as it concerns one spoke.
#[derive(Clone, Debug)]
pub(in crate::link) struct Delivery {
    /// The reply, if any of its events concerns the spoke.
    pub(in crate::link) routed: Option<(Arc<Routed>, SpokeId)>,
    /// The routes by which that was decided.
    pub(in crate::link) routes: Arc<Routes>,
    /// The namespaces whose collection was dropped or renamed at the hub meanwhile.
    pub(in crate::link) lost_collections: Vec<u16>,
    /// The place of the hub's stream after the reply.
    pub(in crate::link) end: Position,
}

/// A spoke's queue at the fan-out.
pub(in crate::link) struct Inbox {
    queue: Mutex<Queue<Delivery>>,
    changed: Notify,
    /// Signals the fan-out that a delivery was taken, or that the writer is idle.
    taken: Arc<Notify>,
    /// The writer is idle.
    waiting: AtomicBool,
    /// The writer remembered no hub edit when it became idle.
    forgetful: AtomicBool,
    detached: AtomicBool,
    shown: Depth,
}

impl Inbox {
    /// An empty inbox, whose fill is shown in `shown`, and which signals `taken` when a delivery is taken or the writer
    /// is idle.
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

    /// True if the writer has applied every delivery and remembers no hub edit: then the writer would skip the spoke's
    /// own changes that come back, as long as no hub edit precedes them. For the fan-out alone, which fills the inbox.
    pub(super) fn needs_no_own_changes(&self) -> bool {
        // In this order: a delivery no longer in the queue was taken by a writer that was not idle.
        self.queue().is_empty() && self.is_awaited() && self.forgetful.load(Ordering::Acquire)
    }

    pub(super) fn has_room_for(&self, delivery: &Delivery) -> bool {
        self.queue().has_room_for(delivery.weight())
    }

    /// Adds a delivery. `false` if the spoke is too far behind: then the inbox is detached.
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

    /// Ends the inbox: the writer gets what is in it, and nothing more will come.
    pub(super) fn detach(&self) {
        self.detached.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// The next delivery; `None` after the last one of a detached inbox. The writer says whether it is `forgetful`: it
    /// has applied every delivery that it took, and no hub edit among them can meet an own change any more.
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

    /// The next delivery, if one waits.
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
    /// Of places without events only the last one matters, unless the routes differ: then a later place covers changes
    /// that were routed otherwise.
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
