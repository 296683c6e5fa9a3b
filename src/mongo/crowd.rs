//! A server that names too many members. The driver watches every member that a server names, with connections of its
//! own, so an answer with thousands of names would take the descriptors of all links.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mongodb::event::sdam::SdamEvent;

/// Members of a replica set, at most, by the MongoDB manual ("Replica Set Members").
const MOST_MEMBERS: usize = 50;

/// Whether a client has been told of too many members.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd(Arc<AtomicBool>);

impl Crowd {
    /// True once, at the first event by which the driver would watch too many members.
    pub(super) fn comes_with(&self, event: &SdamEvent) -> bool {
        let SdamEvent::TopologyDescriptionChanged(changed) = event else { return false };
        is_crowd(changed.new_description.servers().len()) && !self.0.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) fn is_crowd(members: usize) -> bool {
    members > MOST_MEMBERS
}

/// The reason for which such a server is not used.
pub(super) fn reason() -> String {
    format!("it names more than {MOST_MEMBERS} members, which no replica set has: look at rs.conf() there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_has_at_most_fifty_members() {
        assert!(!is_crowd(1) && !is_crowd(50) && is_crowd(51));
    }
}
