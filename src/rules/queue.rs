//! The bounded queue between the fan-out and one writer.
//!
//! The queue never waits and never exceeds its capacity. A push beyond the capacity fails, and the caller decides. An
//! empty queue accepts any item, however large, or a large item could never pass.

use std::collections::VecDeque;

/// Weight of an item, or of all items in a queue, or the capacity of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Number of change events.
    pub(crate) events: usize,
    /// Memory, in bytes.
    pub(crate) bytes: usize,
}

impl Weight {
    fn plus(self, other: Self) -> Self {
        Self { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }
}

/// Error of a full queue, with the rejected item.
#[derive(Debug)]
pub(crate) struct Full<T>(pub(crate) T);

/// First in, first out, bounded by weight.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: VecDeque<(T, Weight)>,
    weight: Weight,
    capacity: Weight,
}

impl<T> Queue<T> {
    /// An empty queue of this capacity.
    pub(crate) fn new(capacity: Weight) -> Self {
        Self { items: VecDeque::new(), weight: Weight::default(), capacity }
    }

    /// Adds an item at the end. Returns the item if the queue has no room.
    pub(crate) fn push(&mut self, item: T, weight: Weight) -> Result<(), Full<T>> {
        if !self.has_room_for(weight) {
            return Err(Full(item));
        }
        self.weight = self.weight.plus(weight);
        self.items.push_back((item, weight));
        Ok(())
    }

    /// True if the queue would accept an item of this weight.
    pub(crate) fn has_room_for(&self, weight: Weight) -> bool {
        let Weight { events, bytes } = self.weight.plus(weight);
        self.items.is_empty() || (events <= self.capacity.events && bytes <= self.capacity.bytes)
    }

    /// Removes and returns the first item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight.events -= weight.events;
        self.weight.bytes -= weight.bytes;
        Some(item)
    }

    /// The last item. A replacement must have the same weight.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut().map(|(item, _)| item)
    }

    /// True if the queue holds no item, not even an item without weight.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Total weight of the items.
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    /// Maximum total weight.
    pub(crate) fn capacity(&self) -> Weight {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: Weight = Weight { events: 10, bytes: 100 };

    #[test]
    fn an_item_larger_than_the_queue_passes_alone() {
        let mut queue = Queue::new(CAPACITY);
        queue.push('a', Weight { events: 11, bytes: 5 }).expect("an empty queue takes anything");
        queue.push('b', Weight { events: 1, bytes: 1 }).expect_err("it is full now");
        assert_eq!(queue.pop(), Some('a'));
        assert_eq!(queue.weight(), Weight::default());
    }

    proptest! {
        #[test]
        fn order_is_kept_and_capacity_respected(steps in prop::collection::vec(prop::option::of((0usize..8, 0usize..80)), 0..200)) {
            let mut queue = Queue::new(CAPACITY);
            let mut model = VecDeque::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some((events, bytes)) => {
                        if queue.push(number, Weight { events, bytes }).is_ok() {
                            model.push_back(number);
                        }
                    }
                    None => prop_assert_eq!(queue.pop(), model.pop_front()),
                }
                prop_assert!(queue.weight().events <= CAPACITY.events && queue.weight().bytes <= CAPACITY.bytes);
            }
        }
    }
}
