//! Which spokes a hub event goes to, and as what.
//!
//! A document goes to those who *hold* its zone: its owner and its watchers. Where a change moves a document from one zone
//! to another, those who hold only the old one lose it. Where the old zone is not known (a hub application's delete or
//! replace in a collection without pre-images), every spoke that does not hold the new one gets a delete that takes effect
//! only on a document of a zone it holds.

use std::collections::HashMap;

use super::names::Zone;

/// A zone's number in a [`Routes`].
pub(crate) type ZoneId = u32;

/// A spoke's number in a [`Routes`].
pub(crate) type SpokeId = usize;

/// Where a document is, as far as the spokes are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a zone that some spoke holds.
    Zone(ZoneId),
    /// In a zone that no spoke holds, in none, or not there at all.
    Elsewhere,
}

/// Where a document was before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// There.
    At(Place),
    /// Nobody knows.
    Unknown,
}

/// One change at the hub, as routing sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Where the document was.
    pub(crate) before: Before,
    /// Where it is now. [`Place::Elsewhere`] if it was deleted.
    pub(crate) after: Place,
    /// True if the document is gone.
    pub(crate) deleted: bool,
    /// The spoke whose uplink made the change.
    pub(crate) origin: Option<SpokeId>,
    /// How those who hold the document's new zone get it.
    pub(crate) content: Content,
}

/// How a document's change is told to a spoke that holds its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The event holds the new document; it did not exist before.
    Inserted,
    /// The event holds the new document.
    Replaced,
    /// The event holds what changed in it.
    Updated,
    /// The document was read whole, and has this number among those read with the batch.
    Read(u32),
}

/// Which zones a document may be in at a spoke for a change to touch it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This zone.
    Zone(ZoneId),
    /// Either of the two.
    Either(ZoneId, ZoneId),
    /// Any zone that the spoke holds.
    Held,
}

/// What one spoke does about one hub event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Apply the content.
    Apply(Content, Reach),
    /// Delete the document.
    Delete(Reach),
    /// It is the spoke's own change coming back.
    Own,
    /// The spoke's own change took the document to a zone that the spoke does not hold: delete it there, in its new zone.
    Leave,
}

/// Who holds which zones.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    zones: Vec<Zone>,
    ids: HashMap<Zone, ZoneId>,
    /// By zone, who holds it, in ascending order.
    holders: Vec<Vec<SpokeId>>,
    /// By spoke: its own zone, then those it watches.
    spokes: Vec<Vec<ZoneId>>,
}

impl Routes {
    /// Each spoke as its own zone and the zones it watches. The spokes are numbered as they come.
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

    /// Where a document of this zone is.
    pub(crate) fn place(&self, zone: &str) -> Place {
        self.ids.get(zone).map_or(Place::Elsewhere, |&id| Place::Zone(id))
    }

    /// The zone with this number.
    pub(crate) fn zone(&self, id: ZoneId) -> &Zone {
        &self.zones[id as usize]
    }

    /// The zones that a spoke holds, its own first.
    pub(crate) fn held(&self, spoke: SpokeId) -> impl Iterator<Item = &Zone> {
        self.spokes[spoke].iter().map(|&id| self.zone(id))
    }

    /// The spoke that owns this zone.
    pub(crate) fn owner(&self, zone: &str) -> Option<SpokeId> {
        let id = *self.ids.get(zone)?;
        self.holders[id as usize].iter().copied().find(|&spoke| self.spokes[spoke][0] == id)
    }

    /// True if no spoke but its owner holds this zone.
    pub(crate) fn is_only_its_owners(&self, zone: &str) -> bool {
        let holders = self.holders_of(self.place(zone));
        holders.iter().all(|&holder| Some(holder) == self.owner(zone))
    }

    /// True if such an action may be somebody else's change of a document of the spoke's own zone: a hub edit.
    pub(crate) fn is_hub_edit(&self, spoke: SpokeId, action: Action) -> bool {
        let own = self.spokes[spoke][0];
        match action {
            Action::Own | Action::Leave => false,
            Action::Delete(reach) | Action::Apply(_, reach) => match reach {
                Reach::Zone(zone) => zone == own,
                Reach::Either(one, other) => one == own || other == own,
                Reach::Held => true,
            },
        }
    }

    /// How many spokes there are.
    pub(crate) fn len(&self) -> usize {
        self.spokes.len()
    }

    /// Says what each spoke does about a change; a spoke that is not named does nothing.
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
            Before::At(Place::Elsewhere) => {}
            Before::Unknown => {
                for spoke in 0..self.spokes.len() {
                    lose(spoke, Reach::Held);
                }
            }
        }
    }

    /// In which zones those who get the new document may have it so far.
    fn reach(&self, change: &Change) -> Reach {
        match (change.before, change.after) {
            (Before::At(Place::Zone(before)), Place::Zone(after)) if before != after => Reach::Either(before, after),
            (Before::At(_), Place::Zone(after)) => Reach::Zone(after),
            _ => Reach::Held,
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
    fn what_others_may_do_to_a_spokes_own_documents_is_a_hub_edit() {
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
    fn a_zone_without_a_spoke_goes_to_those_who_watch_it() {
        let case = route(Some(""), "YARD", false, None, Content::Inserted);
        assert_eq!(case.told, [(AUS, Action::Apply(Content::Inserted, Reach::Zone(case.zone("YARD"))))]);
        assert_eq!(route(Some(""), "NOWHERE", false, None, Content::Inserted).told, []);
    }

    #[test]
    fn a_zone_move_takes_the_document_from_those_who_hold_only_the_old_zone() {
        let case = route(Some("DFW"), "BOS", false, None, Content::Read(0));
        let delete = Action::Delete(Reach::Zone(case.zone("DFW")));
        let apply = Action::Apply(Content::Read(0), Reach::Either(case.zone("DFW"), case.zone("BOS")));
        assert_eq!(case.told, [(DFW, delete), (HOU, delete), (AUS, delete), (BOS, apply)]);
        let case = route(Some("DFW"), "HOU", false, None, Content::Read(0));
        let apply = Action::Apply(Content::Read(0), Reach::Either(case.zone("DFW"), case.zone("HOU")));
        assert_eq!(case.told, [(DFW, apply), (HOU, apply), (AUS, apply)]);
    }

    #[test]
    fn a_spoke_that_moves_its_document_away_loses_it_unless_it_watches_the_new_zone() {
        let case = route(Some("DFW"), "BOS", false, Some(DFW), Content::Read(0));
        assert_eq!(case.told[DFW], (DFW, Action::Leave));
        let case = route(Some("DFW"), "NOWHERE", false, Some(DFW), Content::Read(0));
        let delete = Action::Delete(Reach::Zone(case.zone("DFW")));
        assert_eq!(case.told, [(DFW, Action::Leave), (HOU, delete), (AUS, delete)]);
        assert_eq!(route(Some("DFW"), "HOU", false, Some(DFW), Content::Read(0)).told[DFW], (DFW, Action::Own));
    }

    #[test]
    fn a_move_from_an_unknown_zone_is_a_conditional_delete_for_all_who_do_not_hold_the_new_one() {
        let case = route(None, "DFW", false, None, Content::Replaced);
        let apply = Action::Apply(Content::Replaced, Reach::Held);
        assert_eq!(case.told, [(DFW, apply), (HOU, apply), (AUS, apply), (BOS, Action::Delete(Reach::Held))]);
        let everyone = [DFW, HOU, AUS, BOS].map(|spoke| (spoke, Action::Delete(Reach::Held)));
        assert_eq!(route(None, "", true, None, Content::Updated).told, everyone);
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
