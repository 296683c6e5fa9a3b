//! A reply of the hub's change stream with the actions of each spoke.

use std::sync::Arc;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;

use crate::rules::names::Zone;
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::reply::Reply;
use crate::rules::route::{Action, Content, Routes, SpokeId};

/// By spoke: event numbers, each with the spoke's action.
pub(super) type Picks = Vec<Vec<(u32, Action)>>;

#[derive(Debug)]
pub(in crate::link) struct Routed {
    pub(in crate::link) reply: Reply,
    /// Documents read whole for the events.
    pub(in crate::link) documents: Vec<Option<RawDocumentBuf>>,
    /// The hub's cluster time of the read of `documents`.
    pub(in crate::link) read_at: Timestamp,
    pub(in crate::link) routes: Arc<Routes>,
    picks: Picks,
}

impl Routed {
    pub(super) fn new(
        reply: Reply,
        documents: Vec<Option<RawDocumentBuf>>,
        read_at: Timestamp,
        routes: &Arc<Routes>,
        picks: Picks,
    ) -> Self {
        Self { reply, documents, read_at, routes: routes.clone(), picks }
    }

    pub(in crate::link) fn picks(&self, spoke: SpokeId) -> &[(u32, Action)] {
        &self.picks[spoke]
    }

    /// The weight in a spoke's queue: the events for the spoke, and the memory of the whole reply, kept alive by the
    /// events.
    pub(super) fn weight(&self, spoke: SpokeId) -> Weight {
        let documents: usize = self.documents.iter().flatten().map(|document| document.as_bytes().len()).sum();
        Weight { events: self.picks[spoke].len(), bytes: self.reply.bytes() + documents }
    }

    /// The number of the first hub edit in the zone, if a spoke owns the zone.
    pub(super) fn first_hub_edit(&self, zone: &Zone) -> Option<u32> {
        let spoke = self.routes.owner(zone.as_str())?;
        let mut picks = self.picks[spoke].iter();
        picks.find(|(_, action)| self.routes.is_hub_edit(spoke, *action)).map(|(event, _)| *event)
    }

    /// Cuts the reply before `event`. The reply began at `start`.
    pub(super) fn before(mut self, event: u32, start: &Position) -> Self {
        let end = self.reply.before(event as usize).unwrap_or_else(|| start.clone());
        self.reply = self.reply.excerpt(0..event as usize, end);
        for picks in &mut self.picks {
            picks.retain(|(picked, _)| *picked < event);
        }
        self
    }

    /// The events for `spoke` in separate memory, if the events take less than a quarter of the reply.
    pub(super) fn excerpt(&self, spoke: SpokeId) -> Option<Self> {
        let picks = &self.picks[spoke];
        let bytes: usize = picks.iter().map(|(event, _)| self.reply.event(*event as usize).bytes()).sum();
        if bytes * 4 > self.reply.bytes() {
            return None;
        }
        let mut documents = Vec::new();
        let mut own = Vec::with_capacity(picks.len());
        for (number, (_, action)) in (0u32..).zip(picks) {
            let action = match *action {
                Action::Apply(Content::Read(document), reach) => {
                    let copied = u32::try_from(documents.len()).expect("fewer than events");
                    documents.push(self.documents[document as usize].clone());
                    Action::Apply(Content::Read(copied), reach)
                }
                action => action,
            };
            own.push((number, action));
        }
        let reply = self.reply.excerpt(picks.iter().map(|(event, _)| *event as usize), self.reply.end().clone());
        let mut picks = vec![Vec::new(); self.picks.len()];
        picks[spoke] = own;
        Some(Self::new(reply, documents, self.read_at, &self.routes, picks))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rules::reply::tests::reply;
    use crate::rules::route::{Place, Reach};
    use bson::{Document, doc, rawdoc};

    const DFW: SpokeId = 0;
    const HOU: SpokeId = 1;

    /// DFW and HOU, which watch nobody.
    pub(in crate::link::hub) fn routes() -> Arc<Routes> {
        let zones = [Zone::new("DFW"), Zone::new("HOU")];
        Arc::new(Routes::new(zones.iter().map(|zone| (zone, [].as_slice()))))
    }

    fn deletes(number: usize) -> Reply {
        let delete = |id| doc! { "operationType": "delete", "documentKey": { "_id": id, "text": "x".repeat(200) } };
        let events: Vec<Document> = (0..i32::try_from(number).expect("few")).map(delete).collect();
        reply(&events)
    }

    fn reach(routes: &Routes, zone: &str) -> Reach {
        match routes.place(zone) {
            Place::Zone(id) => Reach::Zone(id),
            Place::Elsewhere => panic!("{zone} is held"),
        }
    }

    /// A reply of four events: three of DFW's, the second of them a hub edit, and HOU's third.
    pub(in crate::link::hub) fn routed() -> Routed {
        let routes = routes();
        let hub_edit = Action::Apply(Content::Read(1), reach(&routes, "DFW"));
        let hou = Action::Apply(Content::Read(0), reach(&routes, "HOU"));
        let picks = vec![vec![(0, Action::Own), (1, hub_edit), (3, Action::Own)], vec![(2, hou)]];
        let documents = vec![Some(rawdoc! { "_id": 2 }), Some(rawdoc! { "_id": 1 })];
        let reply = deletes(4);
        let at = reply.end().cluster_time();
        Routed::new(reply, documents, at, &routes, picks)
    }

    #[test]
    fn an_excerpt_has_a_spokes_events_and_documents_alone() {
        let routed = routed();
        let excerpt = routed.excerpt(HOU).expect("a quarter");
        assert_eq!((excerpt.reply.len(), excerpt.documents.len()), (1, 1));
        assert_eq!(excerpt.reply.event(0).raw(), routed.reply.event(2).raw());
        let [(0, Action::Apply(Content::Read(0), _))] = excerpt.picks(HOU) else { panic!("{:?}", excerpt.picks(HOU)) };
        assert_eq!(excerpt.documents[0], Some(rawdoc! { "_id": 2 }));
        assert!(excerpt.picks(DFW).is_empty());
        assert_eq!(excerpt.reply.end(), routed.reply.end());
    }

    #[test]
    fn a_spoke_that_gets_most_of_a_reply_shares_the_whole() {
        assert!(routed().excerpt(DFW).is_none());
    }

    #[test]
    fn a_hub_edit_is_another_ones_change_in_an_owned_zone() {
        assert_eq!(routed().first_hub_edit(&Zone::new("DFW")), Some(1));
        assert_eq!(routed().first_hub_edit(&Zone::new("HOU")), Some(2));
        assert_eq!(routed().first_hub_edit(&Zone::new("BOS")), None);
    }

    #[test]
    fn the_part_before_an_event_ends_where_the_event_begins() {
        let whole = routed();
        let (start, second) = (whole.reply.end().clone(), whole.reply.event(0).position().expect("a token"));
        let part = routed().before(1, &start);
        assert_eq!((part.reply.len(), part.reply.end()), (1, &second));
        assert_eq!((part.picks(DFW).len(), part.picks(HOU).len()), (1, 0));
        assert_eq!(routed().before(0, &start).reply.end(), &start, "nothing lies before the first event");
    }

    #[test]
    fn the_weight_counts_a_spokes_events_and_the_memory_that_they_keep() {
        let routed = routed();
        let (one, other) = (routed.weight(DFW), routed.weight(HOU));
        assert_eq!((one.events, other.events), (3, 1));
        assert_eq!(one.bytes, other.bytes);
        assert!(one.bytes > routed.reply.bytes());
    }
}
