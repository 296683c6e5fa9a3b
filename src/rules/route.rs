//! Routing: the spokes that receive a hub event, and the action of each spoke.
//!
//! A document goes to the *holders* of its zone: the owner and the watchers. If a change moves a document to another
//! zone, holders of only the old zone lose the document. The old zone is unknown after a hub application's delete or
//! replace in a collection without pre-images. Every spoke that does not hold the new zone then receives a delete, with
//! an effect only on a document in a zone held by the spoke.

use std::collections::HashMap;

use super::names::Zone;

/// Number of a zone in [`Routes`].
pub(crate) type ZoneId = u32;

/// Number of a spoke in [`Routes`].
pub(crate) type SpokeId = usize;

/// Location of a document from the spokes' point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a zone held by at least one spoke.
    Zone(ZoneId),
    /// In a zone held by no spoke, in no zone, or nonexistent.
    Elsewhere,
}

/// Location of a document before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    At(Place),
    /// Not known without a pre-image. The document is in this place now, after the change and perhaps after later ones:
    /// that chooses the receivers, and says nothing of where a spoke has the document.
    LookedUp(Place),
    /// Not known without a pre-image.
    Unknown,
}

/// A change at the hub, reduced to the facts relevant for routing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) before: Before,
    /// [`Place::Elsewhere`] for a deleted document.
    pub(crate) after: Place,
    pub(crate) deleted: bool,
    /// The spoke of the uplink that made the change. `None` for any other change.
    pub(crate) origin: Option<SpokeId>,
    /// Form in which holders of the new zone receive the document.
    pub(crate) content: Content,
}

/// Form in which a holder of the zone receives a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The event contains a document that did not exist before.
    Inserted,
    /// The event contains the new version of the document.
    Replaced,
    /// The event contains the changed fields.
    Updated,
    /// The document was read whole: its number among the documents read for the reply.
    Read(u32),
}

/// Zones in which a spoke's document may be for a change to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Zone(ZoneId),
    /// Two zones, after a move from the first to the second.
    Either(ZoneId, ZoneId),
    /// Unknown, for a document that is in this zone now: the zones that the spoke watches, and its own zone if that is
    /// the document's zone. A document that the spoke has in its own zone may be another one of the same `_id`.
    Into(ZoneId),
    /// Every zone held by the spoke.
    Held,
}

/// Action of a spoke on a hub event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Apply(Content, Reach),
    Delete(Reach),
    /// The spoke's own change returns from the hub as an echo.
    Own,
    /// The spoke's own change moved the document to a zone not held by the spoke: delete the spoke's document, now in
    /// the new zone.
    Leave,
}

/// Zones held by each spoke, and holders of each zone.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    zones: Vec<Zone>,
    ids: HashMap<Zone, ZoneId>,
    /// Holders by zone, in ascending order.
    holders: Vec<Vec<SpokeId>>,
    /// Zones by spoke: the own zone, then the watched zones.
    spokes: Vec<Vec<ZoneId>>,
}

impl Routes {
    /// Builds routes from each spoke's own zone and watched zones. Spokes are numbered in the given order.
    pub(crate) fn new<'a>(spokes: impl Iterator<Item = (&'a Zone, &'a [Zone])>) -> Self {
        let mut routes = Self::default();
        for (spoke, (own, watch)) in spokes.enumerate() {
            let mut held = Vec::new();
            for zone in std::iter::once(own).chain(watch) {
                let id = routes.intern(zone);
                routes.holders[id as usize].push(spoke);
                held.push(id);
            }
            routes.spokes.push(held);
        }
        routes
    }

    /// Location of a document in this zone.
    pub(crate) fn place(&self, zone: &str) -> Place {
        self.ids.get(zone).map_or(Place::Elsewhere, |&id| Place::Zone(id))
    }

    pub(crate) fn zone(&self, id: ZoneId) -> &Zone {
        &self.zones[id as usize]
    }

    /// Zones held by a spoke, the own zone first.
    pub(crate) fn held(&self, spoke: SpokeId) -> impl Iterator<Item = &Zone> {
        self.spokes[spoke].iter().map(|&id| self.zone(id))
    }

    /// Zones held by the spoke that owns this zone: first the own zone, then the watched zones.
    pub(crate) fn held_by(&self, owner: &Zone) -> Vec<Zone> {
        self.owner(owner.as_str()).map(|spoke| self.held(spoke).cloned().collect()).unwrap_or_default()
    }

    /// Owner of the zone, if any.
    pub(crate) fn owner(&self, zone: &str) -> Option<SpokeId> {
        let id = *self.ids.get(zone)?;
        self.holders[id as usize].iter().copied().find(|&spoke| self.spokes[spoke][0] == id)
    }

    /// True if no spoke but the owner holds the zone.
    pub(crate) fn is_only_its_owners(&self, zone: &str) -> bool {
        let holders = self.holders_of(self.place(zone));
        holders.iter().all(|&holder| Some(holder) == self.owner(zone))
    }

    /// True for a possible hub edit: another party's change of a document in the spoke's own zone.
    pub(crate) fn is_hub_edit(&self, spoke: SpokeId, action: Action) -> bool {
        let own = self.spokes[spoke][0];
        match action {
            Action::Own | Action::Leave => false,
            Action::Delete(reach) | Action::Apply(_, reach) => match reach {
                Reach::Zone(zone) | Reach::Into(zone) => zone == own,
                Reach::Either(one, other) => one == own || other == own,
                Reach::Held => true,
            },
        }
    }

    /// Number of spokes.
    pub(crate) fn len(&self) -> usize {
        self.spokes.len()
    }

    /// Calls `tell` with the action of each spoke affected by a change. All other spokes do nothing.
    pub(crate) fn route(&self, change: &Change, mut tell: impl FnMut(SpokeId, Action)) {
        let reach = self.reach(change);
        let gaining = self.holders_of(change.after);
        for &spoke in gaining {
            let own = change.origin == Some(spoke);
            tell(spoke, if own { Action::Own } else { Action::Apply(change.content, reach) });
        }
        let mut lose = |spoke: SpokeId, reach| {
            if gaining.binary_search(&spoke).is_ok() {
                return;
            }
            match (change.origin == Some(spoke), change.deleted) {
                (false, _) => tell(spoke, Action::Delete(reach)),
                (true, true) => tell(spoke, Action::Own),
                (true, false) => tell(spoke, Action::Leave),
            }
        };
        match change.before {
            Before::At(Place::Zone(zone)) => {
                for &spoke in self.holders_of(Place::Zone(zone)) {
                    lose(spoke, Reach::Zone(zone));
                }
            }
            // The event that moved the document to its present place reaches those who lose it.
            Before::At(Place::Elsewhere) | Before::LookedUp(_) => {}
            Before::Unknown => {
                for spoke in 0..self.spokes.len() {
                    lose(spoke, Reach::Held);
                }
            }
        }
    }

    /// Zones in which receivers of the new version may hold the old version.
    fn reach(&self, change: &Change) -> Reach {
        match (change.before, change.after) {
            (Before::At(Place::Zone(before)), Place::Zone(after)) if before != after => Reach::Either(before, after),
            (Before::At(_), Place::Zone(after)) => Reach::Zone(after),
            (Before::LookedUp(_), Place::Zone(after)) => Reach::Into(after),
            (Before::Unknown, Place::Zone(_)) | (_, Place::Elsewhere) => Reach::Held,
        }
    }

    fn holders_of(&self, place: Place) -> &[SpokeId] {
        match place {
            Place::Zone(id) => &self.holders[id as usize],
            Place::Elsewhere => &[],
        }
    }

    fn intern(&mut self, zone: &Zone) -> ZoneId {
        if let Some(&id) = self.ids.get(zone) {
            return id;
        }
        let id = ZoneId::try_from(self.zones.len()).expect("fewer zones than 4 thousand million");
        self.zones.push(zone.clone());
        self.ids.insert(zone.clone(), id);
        self.holders.push(Vec::new());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DFW and HOU watch each other, AUS watches both and the hub's own zone YARD, BOS watches nothing.
    fn routes() -> Routes {
        let zones = |names: &[&str]| names.iter().map(|name| Zone::new(name)).collect::<Vec<_>>();
        let spokes = [
            ("DFW", zones(&["HOU"])),
            ("HOU", zones(&["DFW"])),
            ("AUS", zones(&["DFW", "HOU", "YARD"])),
            ("BOS", vec![]),
        ];
        let spokes: Vec<(Zone, Vec<Zone>)> = spokes.into_iter().map(|(own, watch)| (Zone::new(own), watch)).collect();
        Routes::new(spokes.iter().map(|(own, watch)| (own, watch.as_slice())))
    }

    const DFW: SpokeId = 0;
    const HOU: SpokeId = 1;
    const AUS: SpokeId = 2;
    const BOS: SpokeId = 3;

    struct Case {
        routes: Routes,
        told: Vec<(SpokeId, Action)>,
    }

    fn route(before: Option<&str>, after: &str, deleted: bool, origin: Option<SpokeId>, content: Content) -> Case {
        let routes = routes();
        let before = before.map_or(Before::Unknown, |zone| Before::At(routes.place(zone)));
        let change = Change { before, after: routes.place(after), deleted, origin, content };
        let mut told = Vec::new();
        routes.route(&change, |spoke, action| told.push((spoke, action)));
        told.sort_by_key(|(spoke, _)| *spoke);
        Case { routes, told }
    }

    impl Case {
        fn zone(&self, name: &str) -> ZoneId {
            match self.routes.place(name) {
                Place::Zone(id) => id,
                Place::Elsewhere => panic!("{name} is not held"),
            }
        }
    }

    #[test]
    fn another_partys_change_of_a_spokes_own_document_is_a_hub_edit() {
        let routes = routes();
        let [Place::Zone(dfw), Place::Zone(hou)] = [routes.place("DFW"), routes.place("HOU")] else {
            panic!("both are held")
        };
        let apply = |reach| Action::Apply(Content::Updated, reach);
        for reach in [Reach::Zone(dfw), Reach::Either(dfw, hou), Reach::Either(hou, dfw), Reach::Held] {
            assert!(
                routes.is_hub_edit(DFW, apply(reach)) && routes.is_hub_edit(DFW, Action::Delete(reach)),
                "{reach:?}"
            );
        }
        let others = [apply(Reach::Zone(hou)), Action::Delete(Reach::Zone(hou)), Action::Own, Action::Leave];
        for action in others {
            assert!(!routes.is_hub_edit(DFW, action), "{action:?}");
        }
    }

    #[test]
    fn a_spokes_change_goes_to_its_watchers_and_comes_back_as_its_own() {
        let case = route(Some("DFW"), "DFW", false, Some(DFW), Content::Updated);
        let apply = Action::Apply(Content::Updated, Reach::Zone(case.zone("DFW")));
        assert_eq!(case.told, [(DFW, Action::Own), (HOU, apply), (AUS, apply)]);
        let case = route(Some("DFW"), "", true, Some(DFW), Content::Updated);
        let delete = Action::Delete(Reach::Zone(case.zone("DFW")));
        assert_eq!(case.told, [(DFW, Action::Own), (HOU, delete), (AUS, delete)]);
    }

    #[test]
    fn a_hub_edit_goes_to_the_owner_and_the_watchers() {
        let case = route(Some("HOU"), "HOU", false, None, Content::Updated);
        let apply = Action::Apply(Content::Updated, Reach::Zone(case.zone("HOU")));
        assert_eq!(case.told, [(DFW, apply), (HOU, apply), (AUS, apply)]);
    }

    #[test]
    fn a_zone_without_an_owner_goes_to_its_watchers() {
        let case = route(Some(""), "YARD", false, None, Content::Inserted);
        assert_eq!(case.told, [(AUS, Action::Apply(Content::Inserted, Reach::Zone(case.zone("YARD"))))]);
        assert_eq!(route(Some(""), "NOWHERE", false, None, Content::Inserted).told, []);
    }

    #[test]
    fn holders_of_only_the_old_zone_lose_a_moved_document() {
        let case = route(Some("DFW"), "BOS", false, None, Content::Read(0));
        let delete = Action::Delete(Reach::Zone(case.zone("DFW")));
        let apply = Action::Apply(Content::Read(0), Reach::Either(case.zone("DFW"), case.zone("BOS")));
        assert_eq!(case.told, [(DFW, delete), (HOU, delete), (AUS, delete), (BOS, apply)]);
        let case = route(Some("DFW"), "HOU", false, None, Content::Read(0));
        let apply = Action::Apply(Content::Read(0), Reach::Either(case.zone("DFW"), case.zone("HOU")));
        assert_eq!(case.told, [(DFW, apply), (HOU, apply), (AUS, apply)]);
    }

    #[test]
    fn a_spoke_loses_a_document_it_moves_unless_it_watches_the_new_zone() {
        let case = route(Some("DFW"), "BOS", false, Some(DFW), Content::Read(0));
        assert_eq!(case.told[DFW], (DFW, Action::Leave));
        let case = route(Some("DFW"), "NOWHERE", false, Some(DFW), Content::Read(0));
        let delete = Action::Delete(Reach::Zone(case.zone("DFW")));
        assert_eq!(case.told, [(DFW, Action::Leave), (HOU, delete), (AUS, delete)]);
        assert_eq!(route(Some("DFW"), "HOU", false, Some(DFW), Content::Read(0)).told[DFW], (DFW, Action::Own));
    }

    #[test]
    fn a_move_from_an_unknown_zone_is_a_conditional_delete_at_spokes_without_the_new_zone() {
        let case = route(None, "DFW", false, None, Content::Replaced);
        let apply = Action::Apply(Content::Replaced, Reach::Held);
        assert_eq!(case.told, [(DFW, apply), (HOU, apply), (AUS, apply), (BOS, Action::Delete(Reach::Held))]);
        let everyone = [DFW, HOU, AUS, BOS].map(|spoke| (spoke, Action::Delete(Reach::Held)));
        assert_eq!(route(None, "", true, None, Content::Updated).told, everyone);
    }

    #[test]
    fn a_zone_that_was_looked_up_chooses_the_receivers_and_takes_the_document_from_nobody() {
        let routes = routes();
        let place = routes.place("HOU");
        let before = Before::LookedUp(place);
        let change = Change { before, after: place, deleted: false, origin: None, content: Content::Updated };
        let mut told = Vec::new();
        routes.route(&change, |spoke, action| told.push((spoke, action)));
        let Place::Zone(hou) = place else { panic!("HOU is held") };
        let apply = Action::Apply(Content::Updated, Reach::Into(hou));
        assert_eq!(told, [(DFW, apply), (HOU, apply), (AUS, apply)]);
        assert!(routes.is_hub_edit(HOU, apply) && !routes.is_hub_edit(DFW, apply));
    }

    #[test]
    fn each_zone_has_at_most_one_owner() {
        let routes = routes();
        assert_eq!(routes.owner("HOU"), Some(HOU));
        assert_eq!(routes.owner("YARD"), None);
        assert_eq!(routes.owner("NOWHERE"), None);
        assert!(routes.is_only_its_owners("BOS") && routes.is_only_its_owners("NOWHERE"));
        assert!(!routes.is_only_its_owners("DFW") && !routes.is_only_its_owners("YARD"));
        let held: Vec<&str> = routes.held(AUS).map(Zone::as_str).collect();
        assert_eq!(held, ["AUS", "DFW", "HOU", "YARD"]);
    }
}
