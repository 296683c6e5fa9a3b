//! The bounded queue between the fan-out and one writer.
//!
//! It never waits and never grows beyond its capacity: who does not fit is told so, and decides. One item is always
//! accepted, however large, or nothing could ever pass.

use std::collections::VecDeque;

/// What a queue's items weigh together, or may weigh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// How many change events.
    pub(crate) events: usize,
    /// How many bytes of memory.
    pub(crate) bytes: usize,
}

impl Weight {
    fn plus(self, other: Self) -> Self {
        Self { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }
}

/// The queue is full; here is the item back.
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

    /// Adds an item at the end.
    ///
    /// # Errors
    /// Gives the item back if it does not fit.
    pub(crate) fn push(&mut self, item: T, weight: Weight) -> Result<(), Full<T>> {
        if !self.has_room_for(weight) {
            return Err(Full(item));
        }
        self.weight = self.weight.plus(weight);
        self.items.push_back((item, weight));
        Ok(())
    }

    /// True if an item of this weight would be accepted.
    pub(crate) fn has_room_for(&self, weight: Weight) -> bool {
        let Weight { events, bytes } = self.weight.plus(weight);
        self.items.is_empty() || (events <= self.capacity.events && bytes <= self.capacity.bytes)
    }

    /// Takes the first item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight.events -= weight.events;
        self.weight.bytes -= weight.bytes;
        Some(item)
    }

    /// The last item, to be replaced by one of the same weight.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut().map(|(item, _)| item)
    }

    /// True if nothing is in it, not even what weighs nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What is in it.
    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    /// What may be in it.
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
