//! The hub's change stream, with everything that routing needs: whose change it was, where the document was, where it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::{RawBsonRef, RawDocumentBuf};

use crate::mongo::error::Error;
use crate::mongo::metadata::sessions::{Tag, Tags, moves_of, repair_of};
use crate::mongo::read::{self, Snapshot, Wanted, When};
use crate::mongo::server::Server;
use crate::mongo::tail::{Selection, Tail};
use crate::rules::delta::{FieldChange, Update, field_change};
use crate::rules::key::Key;
use crate::rules::names::{Link, Zone};
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::reply::{EventRef, Kind, Malformed, Reply};
use crate::rules::route::{Action, Before, Change, Content, Place, Routes, SpokeId};

/// One reply of the hub's change stream, and what each spoke does about it.
#[derive(Debug)]
pub(crate) struct Routed {
    /// The events.
    pub(crate) batch: Reply,
    /// Documents that were read whole for them.
    pub(crate) documents: Vec<Option<RawDocumentBuf>>,
    /// When they were read, by the hub's time.
    pub(crate) read_at: Timestamp,
    /// By whose rules this was routed.
    pub(crate) routes: Arc<Routes>,
    /// By spoke: the numbers of the events that concern it, and what it does about them.
    picks: Vec<Vec<(u32, Action)>>,
}

impl Routed {
    /// A reply without events.
    fn position_only(batch: Reply, routes: &Arc<Routes>) -> Self {
        let read_at = batch.end().cluster_time();
        Self { batch, documents: Vec::new(), read_at, routes: routes.clone(), picks: vec![Vec::new(); routes.len()] }
    }

    /// The events that concern a spoke, by number, and what it does about them.
    pub(crate) fn picks(&self, spoke: SpokeId) -> &[(u32, Action)] {
        &self.picks[spoke]
    }

    /// What it weighs in a spoke's queue: its own events, but the memory of the whole reply, which they keep.
    pub(crate) fn weight(&self, spoke: SpokeId) -> Weight {
        let documents: usize = self.documents.iter().flatten().map(|document| document.as_bytes().len()).sum();
        Weight { events: self.picks[spoke].len(), bytes: self.batch.bytes() + documents }
    }

    /// The first event that is a hub edit in this zone, which a spoke owns.
    pub(crate) fn first_hub_edit(&self, zone: &Zone) -> Option<u32> {
        let spoke = self.routes.owner(zone.as_str())?;
        let mut picks = self.picks[spoke].iter();
        picks.find(|(_, action)| self.routes.is_hub_edit(spoke, *action)).map(|(event, _)| *event)
    }

    /// What lies before this event of a reply that began at `start`.
    pub(crate) fn before(mut self, event: u32, start: &Position) -> Self {
        let end = self.batch.before(event as usize).unwrap_or_else(|| start.clone());
        self.batch = self.batch.excerpt(0..event as usize, end);
        for picks in &mut self.picks {
            picks.retain(|(picked, _)| *picked < event);
        }
        self
    }

    /// What concerns one spoke alone, with memory of its own, if that is a small part of the reply.
    pub(crate) fn excerpt(&self, spoke: SpokeId) -> Option<Self> {
        let picks = &self.picks[spoke];
        let bytes: usize = picks.iter().map(|(event, _)| self.batch.event(*event as usize).bytes()).sum();
        if bytes * 4 > self.batch.bytes() {
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
        let batch = self.batch.excerpt(picks.iter().map(|(event, _)| *event as usize), self.batch.end().clone());
        let mut picks = vec![Vec::new(); self.picks.len()];
        picks[spoke] = own;
        Some(Self { batch, documents, read_at: self.read_at, routes: self.routes.clone(), picks })
    }
}

/// The hub's change stream, resolved and routed.
pub(crate) struct Feed {
    hub: Server,
    tail: Tail,
    tags: Tags,
    /// Where the tail stands.
    at: Position,
    /// By what the tail's selection was made; `None` if there is news of tags.
    selected_by: Option<(Arc<Routes>, BTreeSet<Zone>)>,
}

impl Feed {
    /// Opens the stream after this position.
    ///
    /// # Errors
    /// If the hub does not open it.
    pub(crate) async fn open(hub: &Server, position: &Position, routes: Arc<Routes>) -> Result<Self, Error> {
        let tags = Tags::load(hub).await?;
        let without = BTreeSet::new();
        let tail = Tail::open(hub, Some(position), selection(&tags, &routes, &without)).await?;
        Ok(Self { hub: hub.clone(), tail, tags, at: position.clone(), selected_by: Some((routes, without)) })
    }

    /// The hub's next reply.
    ///
    /// # Errors
    /// If the hub fails.
    pub(crate) async fn read(&mut self) -> Result<Reply, Error> {
        let batch = self.tail.next().await?;
        self.at = batch.end().clone();
        Ok(batch)
    }

    /// The reply that follows this place, wherever the stream stands, without the changes that come up from spokes that own these zones.
    ///
    /// # Errors
    /// If the hub fails.
    pub(crate) async fn read_after(
        &mut self,
        place: &Position,
        routes: &Arc<Routes>,
        without: &BTreeSet<Zone>,
    ) -> Result<Reply, Error> {
        let is_same = |(by, zones): &(Arc<Routes>, BTreeSet<Zone>)| Arc::ptr_eq(by, routes) && zones == without;
        if !self.selected_by.as_ref().is_some_and(is_same) || self.at != *place {
            let selection = selection(&self.tags, routes, without);
            if selection != *self.tail.selection() || self.at != *place {
                self.tail = Tail::open(&self.hub, Some(place), selection).await?;
            }
            self.selected_by = Some((routes.clone(), without.clone()));
        }
        self.read().await
    }

    /// Routes a reply for all spokes, or for `only` one.
    ///
    /// # Errors
    /// If the hub fails.
    pub(crate) async fn route(
        &mut self,
        batch: Reply,
        routes: &Arc<Routes>,
        only: Option<SpokeId>,
    ) -> Result<Routed, Error> {
        if self.tags.look_up(batch.events().filter_map(|event| event.session())).await? {
            self.selected_by = None;
        }
        let mut facts: Vec<Option<Facts>> = Vec::with_capacity(batch.len());
        for event in batch.events() {
            facts.push(self.facts(event, routes).map_err(|error| self.hub.malformed(error))?);
        }
        let Some(last) = batch.len().checked_sub(1) else { return Ok(Routed::position_only(batch, routes)) };
        let last = batch.event(last).cluster_time();
        find_zones(&self.hub, &batch, &mut facts, routes, last).await?;
        let (documents, read_at) = read_documents(&self.hub, &batch, &mut facts, routes, only, last).await?;
        let mut picks = vec![Vec::new(); routes.len()];
        for (number, facts) in (0u32..).zip(facts) {
            let Some(facts) = facts else { continue };
            routes.route(&facts.change(), |spoke, action| {
                if only.is_none_or(|only| only == spoke) {
                    picks[spoke].push((number, action));
                }
            });
        }
        Ok(Routed { batch, documents, read_at, routes: routes.clone(), picks })
    }

    /// What an event itself says.
    fn facts(&self, event: EventRef<'_>, routes: &Routes) -> Result<Option<Facts>, Malformed> {
        let place = |value: Option<RawBsonRef<'_>>| match value {
            Some(RawBsonRef::String(zone)) => routes.place(zone),
            _ => Place::Elsewhere,
        };
        let field = self.hub.partition_key();
        let document_place = |document: &bson::RawDocument| place(document.get(field).ok().flatten());
        match event.kind() {
            Kind::Other => return Ok(None),
            Kind::CollectionLost => {
                tracing::warn!("a synced collection was dropped or renamed at the hub; the spokes keep its documents");
                return Ok(None);
            }
            _ => {}
        }
        let tag = event.session().and_then(|session| self.tags.get(&session));
        let origin = tag.filter(|tag| comes_up(tag)).map(|tag| &tag.zone);
        let before = match (event.kind(), origin, event.before()) {
            (Kind::Insert, ..) => Before::At(Place::Elsewhere),
            (_, Some(zone), _) => Before::At(routes.place(zone.as_str())),
            (_, None, Some(document)) => Before::At(document_place(document)),
            (_, None, None) => Before::Unknown,
        };
        let mut facts = Facts {
            before,
            after: After::AsBefore,
            deleted: event.kind() == Kind::Delete,
            origin: origin.map(Zone::as_str).and_then(|zone| routes.owner(zone)),
            content: Content::Updated,
            must_read: false,
        };
        match event.kind() {
            Kind::Delete => facts.after = After::At(Place::Elsewhere),
            Kind::Insert | Kind::Replace => {
                facts.after = After::At(event.zoned().map_or(Place::Elsewhere, document_place));
                // Somebody has come to take it since the stream was opened.
                facts.must_read = event.is_bare();
                facts.content = if event.kind() == Kind::Insert { Content::Inserted } else { Content::Replaced };
            }
            _ => {
                let description =
                    event.update_description().ok_or_else(|| Malformed::new("an update says nothing".to_owned()))?;
                facts.after = match field_change(description, field) {
                    FieldChange::None => After::AsBefore,
                    FieldChange::Set(value) => After::At(place(Some(value))),
                    FieldChange::Unset => After::At(Place::Elsewhere),
                };
                let moves = matches!(facts.after, After::At(after) if facts.before != Before::At(after));
                let update = Update::read(description, self.hub.disambiguates_paths());
                facts.must_read = moves || matches!(update, Update::Whole);
            }
        }
        Ok(Some(facts))
    }
}

/// True for what a spoke's changes carry. Other tags, if there are any, are ours but not a spoke's.
fn comes_up(tag: &Tag) -> bool {
    is_usual(tag) || tag.link == moves_of(&tag.zone) || tag.link == repair_of(&tag.zone)
}

/// True for what a spoke's changes carry if they take no document out of its zone.
fn is_usual(tag: &Tag) -> bool {
    tag.link == Link::uplink(&tag.zone).to_string()
}

/// What a stream for these routes brings. To spokes whose documents go to no other spoke their own changes come back only to be held
/// against others, for which the documents need not come along. In the zones `without` them there is nothing to be held against.
fn selection(tags: &Tags, routes: &Routes, without: &BTreeSet<Zone>) -> Selection {
    let is_left_out = |tag: &Tag| is_usual(tag) && without.contains(&tag.zone);
    let is_bare = |tag: &Tag| comes_up(tag) && !is_left_out(tag) && routes.is_only_its_owners(tag.zone.as_str());
    Selection { without: tags.present(is_left_out), bare: tags.present(is_bare), zone_before: true }
}

/// Finds the zones of documents that hub applications updated in collections without pre-images.
async fn find_zones(
    hub: &Server,
    batch: &Reply,
    facts: &mut [Option<Facts>],
    routes: &Routes,
    not_before: Timestamp,
) -> Result<(), Error> {
    let is_lost = |facts: &Facts| facts.before == Before::Unknown && facts.after == After::AsBefore;
    let missing = wanted(hub, batch, facts, is_lost)?;
    if missing.is_empty() {
        return Ok(());
    }
    let found = read::documents(hub, &missing, Some(hub.partition_field()), When::NotBefore(not_before)).await?;
    for (event, facts) in batch.events().zip(facts) {
        let Some(lost) = facts.as_mut().filter(|facts| is_lost(facts)) else { continue };
        match found.documents.get(&event.key().map_err(|error| hub.malformed(error))?) {
            Some(Some(document)) => {
                let zone = document.get_str(hub.partition_key()).ok();
                lost.before = Before::At(zone.map_or(Place::Elsewhere, |zone| routes.place(zone)));
            }
            // It was deleted since, and that event will reach everybody.
            _ => *facts = None,
        }
    }
    Ok(())
}

/// Reads the documents that must be brought whole to some spoke.
async fn read_documents(
    hub: &Server,
    batch: &Reply,
    facts: &mut [Option<Facts>],
    routes: &Routes,
    only: Option<SpokeId>,
    last: Timestamp,
) -> Result<(Vec<Option<RawDocumentBuf>>, Timestamp), Error> {
    let missing = wanted(hub, batch, facts, |facts| facts.must_read && facts.has_takers(routes, only))?;
    if missing.is_empty() {
        return Ok((Vec::new(), last));
    }
    let Snapshot { at, documents: mut read } = read::documents_at(hub, &missing, last).await?;
    let mut documents = Vec::new();
    let mut numbers: HashMap<Key, u32> = HashMap::new();
    for (event, facts) in batch.events().zip(facts) {
        let Some(facts) = facts.as_mut().filter(|facts| facts.must_read) else { continue };
        let key = event.key().map_err(|error| hub.malformed(error))?;
        let number = match numbers.get(&key) {
            Some(&number) => number,
            None => {
                let number = u32::try_from(documents.len()).expect("fewer than events");
                let Some(document) = read.remove(&key) else { continue };
                documents.push(document);
                numbers.insert(key, number);
                number
            }
        };
        facts.content = Content::Read(number);
    }
    Ok((documents, at))
}

fn wanted<'a>(
    hub: &Server,
    batch: &'a Reply,
    facts: &[Option<Facts>],
    is_wanted: impl Fn(&Facts) -> bool,
) -> Result<Wanted<'a>, Error> {
    let mut wanted = Wanted::new();
    for (event, facts) in batch.events().zip(facts) {
        if facts.as_ref().is_some_and(&is_wanted) {
            let id = event.id().map_err(|error| hub.malformed(error))?;
            wanted.insert(event.key().map_err(|error| hub.malformed(error))?, id);
        }
    }
    Ok(wanted)
}

/// Where a document is after a change, as far as the event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    At(Place),
    AsBefore,
}

/// What is known of one event.
#[derive(Debug)]
struct Facts {
    before: Before,
    after: After,
    deleted: bool,
    origin: Option<SpokeId>,
    content: Content,
    /// Those who hold the document's zone need it whole.
    must_read: bool,
}

impl Facts {
    fn after(&self) -> Place {
        match (self.after, self.before) {
            (After::At(place), _) | (After::AsBefore, Before::At(place)) => place,
            (After::AsBefore, Before::Unknown) => Place::Elsewhere,
        }
    }

    fn change(&self) -> Change {
        Change {
            before: self.before,
            after: self.after(),
            deleted: self.deleted,
            origin: self.origin,
            content: self.content,
        }
    }

    /// True if somebody will be told to apply the document.
    fn has_takers(&self, routes: &Routes, only: Option<SpokeId>) -> bool {
        let mut has_takers = false;
        routes.route(&self.change(), |spoke, action| {
            has_takers |= matches!(action, Action::Apply(..)) && only.is_none_or(|only| only == spoke);
        });
        has_takers
    }
}
