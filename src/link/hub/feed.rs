//! The hub's change stream with the facts for routing: the origin of each change, and the document's zone before and
//! after.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;

use super::routed::{Picks, Routed};
use crate::mongo::error::Error;
use crate::mongo::metadata::sessions::{Tag, Tags, moves_of, repair_of};
use crate::mongo::read::{self, Snapshot, Wanted, When};
use crate::mongo::server::Server;
use crate::mongo::tail::{Selection, Tail};
use crate::rules::hub_event::{Facts, HubEvents};
use crate::rules::key::Key;
use crate::rules::names::{LinkName, Zone};
use crate::rules::position::Position;
use crate::rules::reply::{EventRef, Kind, Reply};
use crate::rules::route::{Place, Routes, SpokeId};

pub(in crate::link) struct Feed {
    hub: Server,
    tail: Tail,
    tags: Tags,
    /// The position of what was routed and of what comes next.
    at: Position,
    /// The rest of replies of which only the first part was routed. It comes next.
    rest: VecDeque<Reply>,
    /// The routes and left-out zones of the tail's selection; `None` after new tags.
    selected_by: Option<(Arc<Routes>, BTreeSet<Zone>)>,
}

impl Feed {
    /// Opens the stream after `position`.
    pub(in crate::link) async fn open(hub: &Server, position: &Position, routes: Arc<Routes>) -> Result<Self, Error> {
        let tags = Tags::load(hub).await?;
        let without = BTreeSet::new();
        let tail = Tail::open(hub, Some(position), selection(&tags, &routes, &without)).await?;
        Ok(Self {
            hub: hub.clone(),
            tail,
            tags,
            at: position.clone(),
            rest: VecDeque::new(),
            selected_by: Some((routes, without)),
        })
    }

    pub(in crate::link) async fn read(&mut self) -> Result<Reply, Error> {
        let reply = match self.rest.pop_front() {
            Some(rest) => rest,
            None => self.tail.next().await?,
        };
        self.at = reply.end().clone();
        Ok(reply)
    }

    /// The reply after `place`, without the own changes of the owners of the zones in `without`. Opens a new cursor if
    /// the tail has another position or selection.
    pub(super) async fn read_after(
        &mut self,
        place: &Position,
        routes: &Arc<Routes>,
        without: &BTreeSet<Zone>,
    ) -> Result<Reply, Error> {
        let is_same = |(by, zones): &(Arc<Routes>, BTreeSet<Zone>)| Arc::ptr_eq(by, routes) && zones == without;
        if !self.selected_by.as_ref().is_some_and(is_same) || self.at != *place {
            let selection = selection(&self.tags, routes, without);
            if selection != *self.tail.selection() || self.at != *place {
                self.rest.clear();
                self.tail = Tail::open(&self.hub, Some(place), selection).await?;
            }
            self.selected_by = Some((routes.clone(), without.clone()));
        }
        self.read().await
    }

    /// Routes a reply for all spokes, or for the spoke `only`. Only its first part, if the documents to be read do not
    /// fit into memory together: the rest comes next.
    pub(in crate::link) async fn route(
        &mut self,
        mut reply: Reply,
        routes: &Arc<Routes>,
        only: Option<SpokeId>,
    ) -> Result<Routed, Error> {
        loop {
            match self.route_at_once(&reply, routes, only).await {
                Ok((documents, read_at, picks)) => return Ok(Routed::new(reply, documents, read_at, routes, picks)),
                Err(error) => {
                    let Error::TooMuch { fitting, .. } = error else { return Err(error) };
                    let (first, rest) = reply.split(fitting).ok_or(error)?;
                    self.at = first.end().clone();
                    self.rest.push_front(rest);
                    reply = first;
                }
            }
        }
    }

    async fn route_at_once(
        &mut self,
        reply: &Reply,
        routes: &Arc<Routes>,
        only: Option<SpokeId>,
    ) -> Result<(Vec<Option<RawDocumentBuf>>, Timestamp, Picks), Error> {
        // All sessions are looked up first: otherwise a link's change could pass for an application's change.
        if self.tags.look_up(reply.events().filter_map(|event| event.session())).await? {
            self.selected_by = None;
        }
        let rules =
            HubEvents { routes, partition_key: self.hub.partition_key(), precise: self.hub.disambiguates_paths() };
        let mut facts: Vec<Option<Facts>> = Vec::with_capacity(reply.len());
        // An earlier event of the reply may say where a document is. The map costs a key for each event, so it is made
        // only where some event does not name its zone.
        let mut places: HashMap<Key, Place> = HashMap::new();
        let is_nameless = |event: EventRef<'_>| event.before().is_none() && event.kind() == Kind::Update;
        let needs_places = reply.events().any(is_nameless);
        for event in reply.events() {
            if event.kind() == Kind::CollectionLost {
                tracing::warn!("a synced collection was dropped or renamed at the hub; the spokes keep its documents");
            }
            let tag = event.session().and_then(|session| self.tags.get(&session));
            let origin = tag.filter(|tag| comes_up(tag)).map(|tag| &tag.zone);
            let key = if needs_places { event.key().ok() } else { None };
            let known = key.as_ref().and_then(|key| places.get(key).copied());
            let mut stated = rules.facts(event, origin, known).map_err(|error| self.hub.malformed(error))?;
            // A document that cannot be named cannot be read either: the spokes get a dead letter.
            if stated.is_some() && !event.is_readable() {
                stated = stated.filter(|facts| !facts.needs_zone());
                if let Some(facts) = &mut stated {
                    facts.must_read = false;
                } else {
                    let (ns, at) = (self.hub.namespace(event.namespace()), event.cluster_time());
                    tracing::error!(%ns, %at, "a change is left out: the document's _id cannot be read");
                }
            }
            if let (Some(key), Some(place)) = (key, stated.as_ref().and_then(Facts::place_after)) {
                places.insert(key, place);
            }
            facts.push(stated);
        }
        let Some(last) = reply.len().checked_sub(1) else {
            return Ok((Vec::new(), reply.end().cluster_time(), vec![Vec::new(); routes.len()]));
        };
        let last = reply.event(last).cluster_time();
        // Zones first: only documents with a receiving spoke are read whole.
        find_zones(&self.hub, reply, &mut facts, rules, last).await?;
        let (documents, read_at) = read_documents(&self.hub, reply, &mut facts, routes, only, last).await?;
        let mut picks = vec![Vec::new(); routes.len()];
        for (number, facts) in (0u32..).zip(facts) {
            let Some(facts) = facts else { continue };
            routes.route(&facts.change(), |spoke, action| {
                if only.is_none_or(|only| only == spoke) {
                    picks[spoke].push((number, action));
                }
            });
        }
        Ok((documents, read_at, picks))
    }
}

/// True for sessions that carry a spoke's changes to the hub.
fn comes_up(tag: &Tag) -> bool {
    is_usual(tag) || tag.link == moves_of(&tag.zone) || tag.link == repair_of(&tag.zone)
}

/// True for the usual session of an uplink, which takes no document out of the zone.
fn is_usual(tag: &Tag) -> bool {
    tag.link == LinkName::uplink(&tag.zone).to_string()
}

/// The selection of a stream for these routes. A spoke's own changes come back bare if no other spoke holds the zone:
/// only the rule for concurrent edits needs the events, without content. Own changes of the zones in `without` do not
/// come back.
fn selection(tags: &Tags, routes: &Routes, without: &BTreeSet<Zone>) -> Selection {
    let is_left_out = |tag: &Tag| is_usual(tag) && without.contains(&tag.zone);
    let is_bare = |tag: &Tag| comes_up(tag) && !is_left_out(tag) && routes.is_only_its_owners(tag.zone.as_str());
    Selection { without: tags.present(is_left_out), bare: tags.present(is_bare), zone_before: true }
}

/// Looks up the zones of documents updated by hub applications in collections without pre-images.
async fn find_zones(
    hub: &Server,
    reply: &Reply,
    facts: &mut [Option<Facts>],
    rules: HubEvents<'_>,
    not_before: Timestamp,
) -> Result<(), Error> {
    let missing = wanted(hub, reply, facts, Facts::needs_zone)?;
    if missing.is_empty() {
        return Ok(());
    }
    let found = read::documents(hub, &missing, Some(hub.partition_field()), When::NotBefore(not_before)).await?;
    for (event, facts) in reply.events().zip(facts) {
        let Some(unknown) = facts.filter(Facts::needs_zone) else { continue };
        let key = event.key().map_err(|error| hub.malformed(error))?;
        let document = found.documents.get(&key).and_then(Option::as_deref);
        *facts = rules.with_zone(unknown, document);
    }
    Ok(())
}

/// Reads the documents needed whole by any spoke.
async fn read_documents(
    hub: &Server,
    reply: &Reply,
    facts: &mut [Option<Facts>],
    routes: &Routes,
    only: Option<SpokeId>,
    last: Timestamp,
) -> Result<(Vec<Option<RawDocumentBuf>>, Timestamp), Error> {
    let missing = wanted(hub, reply, facts, |facts| facts.must_read && facts.has_takers(routes, only))?;
    if missing.is_empty() {
        return Ok((Vec::new(), last));
    }
    let read = read::fitting_documents_at(hub, &missing, last).await;
    let Snapshot { at, documents: mut read } = read.map_err(|error| match error {
        Error::TooMuch { server, fitting } => Error::TooMuch { server, fitting: events_with(fitting, reply, &missing) },
        error => error,
    })?;
    let mut documents = Vec::new();
    let mut numbers: HashMap<Key, u32> = HashMap::new();
    for (event, facts) in reply.events().zip(facts) {
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
        facts.was_read(number);
    }
    Ok((documents, at))
}

/// The number of the reply's first events that need no more than so many documents.
fn events_with(documents: usize, reply: &Reply, missing: &Wanted<'_>) -> usize {
    let mut needed = HashSet::new();
    let fit = reply.events().take_while(|event| {
        needed.extend(event.key().ok().filter(|key| missing.contains_key(key)));
        needed.len() <= documents
    });
    fit.count()
}

/// The documents of the events with wanted facts.
fn wanted<'a>(
    hub: &Server,
    reply: &'a Reply,
    facts: &[Option<Facts>],
    is_wanted: impl Fn(&Facts) -> bool,
) -> Result<Wanted<'a>, Error> {
    let mut wanted = Wanted::new();
    for (event, facts) in reply.events().zip(facts) {
        if facts.as_ref().is_some_and(&is_wanted) {
            let id = event.id().map_err(|error| hub.malformed(error))?;
            wanted.insert(event.key().map_err(|error| hub.malformed(error))?, id);
        }
    }
    Ok(wanted)
}
