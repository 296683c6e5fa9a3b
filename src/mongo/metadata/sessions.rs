//! Tags: the registered sessions of our own transactions, by which a change event is recognised as ours.
//!
//! A change event of a transaction carries the session as `lsid.id`. If the session is registered at the server of the
//! change stream, the change is ours.
//!
//! ```text
//! _id        binary  UUID of the session, as in `lsid.id`
//! link       string  name: a link such as `uplink:DFW`, [`moves:DFW`](moves_of) or [`repair:DFW`](repair_of)
//! zone       string  zone that the link's spoke owns
//! opened_at  date    time of the registration, by the process's clock
//! ended_at   date    time of the end, by the process's clock; absent while the session may be in use
//! ```
//!
//! Registered at the server that the session writes to. [`tagged_session`] and [`repair_session`] register a session
//! before the first use, with write concern majority. So the reader of an event always finds the registration of the
//! event's session. The next session of the same name, or the end of a repair, sets `ended_at`. 60 days later the next
//! end of a session of the same name deletes the registration.
//!
//! Index: only `_id`. The queries by `link`, `opened_at` and `ended_at` read all documents, in the order of `_id`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype};
use mongodb::ClientSession;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{SESSIONS, ago, delete_all, majority};
use crate::mongo::error::{Error, codes};
use crate::mongo::server::{Server, first_batch};
use crate::rules::names::Zone;
use crate::rules::reply::SessionId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The name, such as `uplink:DFW`.
    pub(crate) link: String,
    /// The zone of the link's spoke.
    pub(crate) zone: Zone,
    /// The time of the registration, by the process's clock.
    pub(crate) opened_at: Option<DateTime>,
}

/// Number of remembered sessions above which [`Tags`] forgets the sessions of applications.
const REMEMBERED: usize = 20_000;

/// The known sessions that write to one server: our own with their tag, those of applications with `None`.
pub(crate) struct Tags {
    server: Server,
    known: HashMap<SessionId, Option<Tag>>,
}

impl Tags {
    /// Reads all registrations. Fails if the server does not answer, or a registration is damaged.
    pub(crate) async fn load(server: &Server) -> Result<Self, Error> {
        let mut tags = Self { server: server.clone(), known: HashMap::new() };
        tags.find(doc! {}).await?;
        Ok(tags)
    }

    pub(crate) fn ours(&self) -> Vec<SessionId> {
        self.known.iter().filter(|(_, tag)| tag.is_some()).map(|(id, _)| *id).collect()
    }

    /// The newest session of every name whose tag satisfies the condition, in ascending order. The newest session is
    /// most likely the one in use.
    pub(crate) fn present(&self, is_wanted: impl Fn(&Tag) -> bool) -> Vec<SessionId> {
        let ours = self.known.iter().filter_map(|(id, tag)| Some((*id, tag.as_ref()?)));
        newest_of_each(ours.filter(|(_, tag)| is_wanted(tag)))
    }

    /// The tag of a session that was looked up; `None` for a session of an application.
    pub(crate) fn get(&self, session: &SessionId) -> Option<&Tag> {
        self.known.get(session)?.as_ref()
    }

    /// Looks up all unknown sessions in one query. Returns true if any of them is ours. Fails if the server does not
    /// answer, or a registration is damaged.
    pub(crate) async fn look_up(&mut self, sessions: impl Iterator<Item = SessionId>) -> Result<bool, Error> {
        let mut unknown: Vec<SessionId> = sessions.filter(|session| !self.known.contains_key(session)).collect();
        if unknown.is_empty() {
            return Ok(false);
        }
        unknown.sort_unstable();
        unknown.dedup();
        if self.known.len() > REMEMBERED {
            self.known.retain(|_, tag| tag.is_some());
        }
        let ids: Vec<Binary> = unknown.iter().map(binary).collect();
        self.find(doc! { "_id": { "$in": ids } }).await?;
        let is_ours = unknown.iter().any(|session| self.get(session).is_some());
        for session in unknown {
            self.known.entry(session).or_insert(None);
        }
        Ok(is_ours)
    }

    async fn find(&mut self, filter: Document) -> Result<(), Error> {
        // A registration is committed before every event of its session. So a read at the present cluster
        // time or later finds the registrations of all events seen so far.
        let now = self.server.now().await?;
        let find = doc! {
            "find": SESSIONS, "filter": filter, "hint": { "_id": 1 }, "batchSize": 100_000, "singleBatch": true,
            "readConcern": { "level": "majority", "afterClusterTime": now },
        };
        let reply = self.server.run("reading sessions", &self.server.metadata(), find).await?;
        for session in first_batch(&reply) {
            // Without the registration our own changes would pass for an application's.
            let (id, tag) =
                read(session).ok_or_else(|| self.server.unsuitable("a registration in sessions is damaged"))?;
            self.known.insert(id, Some(tag));
        }
        Ok(())
    }
}

fn newest_of_each<'t>(sessions: impl Iterator<Item = (SessionId, &'t Tag)>) -> Vec<SessionId> {
    let mut newest: HashMap<&str, (Option<DateTime>, SessionId)> = HashMap::new();
    for (id, tag) in sessions {
        let session = (tag.opened_at, id);
        newest.entry(&tag.link).and_modify(|newest| *newest = session.max(*newest)).or_insert(session);
    }
    let mut newest: Vec<SessionId> = newest.into_values().map(|(_, id)| id).collect();
    newest.sort_unstable();
    newest
}

/// A place for a link's session at one server, from one generation of the link's loop to the next. The session must not
/// return to the driver's pool, or other callers would get a tagged session.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Sessions>>);

/// A link's present session and its former ones, all kept from the driver's pool.
#[derive(Default)]
struct Sessions {
    present: Option<ClientSession>,
    former: VecDeque<ClientSession>,
    /// The log says already that the server ends no sessions.
    refused: bool,
}

/// Time between the end of a session and the deletion of its registration: 60 days, longer than any oplog window.
const OUTLIVES: Duration = Duration::from_secs(60 * 24 * 3_600);

/// Most former sessions that a slot keeps from the driver's pool. Older ones ended at the server long ago.
const FORMER: usize = 50;

/// A link's session, locked by one generation of the link's loop.
pub(crate) struct TaggedSession(OwnedMutexGuard<Sessions>);

impl TaggedSession {
    pub(crate) fn get(&mut self) -> &mut ClientSession {
        self.0.present.as_mut().expect("the slot is filled before the session is given out")
    }
}

/// Registers a new session under the name of a link, or under [`moves_of`] a zone, and ends the earlier sessions of
/// the name. Otherwise the server would keep the open transaction of a killed process, with locks on all of its
/// documents, for a minute (`transactionLifetimeLimitSeconds`).
pub(crate) async fn tagged_session(
    server: &Server,
    name: &str,
    zone: &Zone,
    slot: &Slot,
) -> Result<TaggedSession, Error> {
    // The earlier generation is about to end and unlock the slot.
    let wait = async { Ok(slot.0.clone().lock_owned().await) };
    let mut slot = server.bounded("waiting for the previous session", wait).await?;
    let present = new_session(server, name, zone).await?;
    let former = slot.present.replace(present);
    slot.former.extend(former);
    if slot.former.len() > FORMER {
        slot.former.pop_front();
    }
    let Sessions { present, refused, .. } = &mut *slot;
    kill_former(server, name, present.as_ref().expect("it was filled above"), refused).await?;
    Ok(TaggedSession(slot))
}

async fn new_session(server: &Server, name: &str, zone: &Zone) -> Result<ClientSession, Error> {
    // The pool returns sessions in any order. A session registered under another name stays out of the pool until the
    // loop ends, or the pool would return the same session again.
    let mut others = Vec::new();
    loop {
        let session = server.bounded("starting a session", server.client().start_session().into_future()).await?;
        if register(server, &session, name, zone).await? {
            return Ok(session);
        }
        others.push(session);
    }
}

/// Ends the earlier sessions of this name together with their open transactions. The registrations stay until the last
/// change events of the sessions have left every oplog.
///
/// A user may end sessions of the same user without any privilege
/// (<https://www.mongodb.com/docs/manual/reference/command/killSessions/>). A server that answers with an error ends
/// none: `refused` remembers that it was told.
async fn kill_former(server: &Server, name: &str, present: &ClientSession, refused: &mut bool) -> Result<(), Error> {
    const AT_MOST: i32 = 1_000;
    let former = doc! { "link": name, "_id": { "$ne": id(present) }, "ended_at": { "$exists": false } };
    let find = doc! {
        "find": SESSIONS, "filter": former, "sort": { "opened_at": -1 }, "hint": { "_id": 1 },
        "limit": AT_MOST, "batchSize": AT_MOST, "singleBatch": true,
    };
    let reply = server.run("reading sessions", &server.metadata(), find).await?;
    let ids: Vec<Bson> = first_batch(&reply).filter_map(|session| session.get("_id")).cloned().collect();
    if ids.is_empty() {
        return Ok(());
    }
    let sessions: Vec<Document> = ids.iter().map(|id| doc! { "id": id }).collect();
    let admin = server.client().database("admin");
    match server.run("ending previous sessions", &admin, doc! { "killSessions": sessions }).await {
        // Small Atlas clusters have no such command, and another user's sessions are not ours to end. The server aborts
        // their transactions by itself after a while.
        Err(error) if error.code().is_some() => {
            if !std::mem::replace(refused, true) {
                let consequence = "a transaction of a killed process may hold its documents for a minute";
                tracing::info!(%error, consequence, "earlier sessions are not ended");
            }
        }
        result => drop(result?),
    }
    note_ended(server, name, &ids).await
}

/// Sets `ended_at` of the sessions, and deletes the registrations under this name that ended 60 days ago.
async fn note_ended(server: &Server, name: &str, ids: &[Bson]) -> Result<(), Error> {
    let update = doc! { "$set": { "ended_at": DateTime::now() } };
    let ended = doc! {
        "update": SESSIONS, "updates": [{ "q": { "_id": { "$in": ids } }, "u": update, "multi": true }],
    };
    server.run("marking ended sessions", &server.metadata(), ended).await?;
    let delete = delete_all(SESSIONS, doc! { "link": name, "ended_at": { "$lt": ago(OUTLIVES) } });
    server.run("deleting old sessions", &server.metadata(), delete).await.map(drop)
}

/// The name of the session of an uplink's transactions in which a document leaves the zone. Other spokes may hold the
/// new zone, so every change stream must bring the changes of this session.
pub(crate) fn moves_of(zone: &Zone) -> String {
    format!("moves:{zone}")
}

/// The name of the sessions of repairs of a zone. At the hub their changes count as the owner's, because the documents
/// come from the owner's spoke.
pub(crate) fn repair_of(zone: &Zone) -> String {
    format!("repair:{zone}")
}

/// Registers a new session for repairs of a zone. Earlier sessions of the same name may stay in use.
pub(crate) async fn repair_session(server: &Server, zone: &Zone) -> Result<ClientSession, Error> {
    new_session(server, &repair_of(zone), zone).await
}

pub(crate) async fn end_repair(server: &Server, session: &ClientSession, zone: &Zone) -> Result<(), Error> {
    note_ended(server, &repair_of(zone), &[id(session)]).await
}

/// Registers a session. Returns false if the session is already registered under another name.
async fn register(server: &Server, session: &ClientSession, name: &str, zone: &Zone) -> Result<bool, Error> {
    let id = id(session);
    let insert = doc! {
        "insert": SESSIONS, "documents": [registration(&id, name, zone)], "writeConcern": majority(),
    };
    match server.run("registering a session", &server.metadata(), insert).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(codes::DUPLICATE_KEY) => {
            let find = doc! { "find": SESSIONS, "filter": { "_id": id, "link": name }, "limit": 1 };
            let reply = server.run("reading sessions", &server.metadata(), find).await?;
            Ok(first_batch(&reply).next().is_some())
        }
        Err(error) => Err(error),
    }
}

fn registration(id: &Bson, name: &str, zone: &Zone) -> Document {
    doc! { "_id": id, "link": name, "zone": zone.as_str(), "opened_at": DateTime::now() }
}

fn read(session: &Document) -> Option<(SessionId, Tag)> {
    let Bson::Binary(id) = session.get("_id")? else { return None };
    let tag = Tag {
        link: session.get_str("link").ok()?.to_owned(),
        zone: Zone::new(session.get_str("zone").ok()?),
        opened_at: session.get_datetime("opened_at").ok().copied(),
    };
    Some((id.bytes.as_slice().try_into().ok()?, tag))
}

/// The session's id as the driver and the server write it.
fn id(session: &ClientSession) -> Bson {
    session.id().get("id").cloned().unwrap_or(Bson::Null)
}

/// The session's id as a BSON value.
pub(crate) fn binary(id: &SessionId) -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: id.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_link_the_session_that_was_registered_last_is_the_present_one() {
        let tag = |link: &str, at: Option<i64>| Tag {
            link: link.to_owned(),
            zone: Zone::new("DFW"),
            opened_at: at.map(DateTime::from_millis),
        };
        let tags = [tag("a", Some(5)), tag("a", Some(7)), tag("a", None), tag("b", None), tag("a", Some(6))];
        let sessions = (0u8..).zip(&tags).map(|(number, tag)| ([number; 16], tag));
        assert_eq!(newest_of_each(sessions), [[1; 16], [3; 16]]);
    }

    #[test]
    fn a_registration_is_read_as_it_was_written() {
        let (id, zone) = ([7; 16], Zone::new("DFW"));
        let written = registration(&binary(&id).into(), &moves_of(&zone), &zone);
        let (read_id, tag) = read(&written).expect("a registration");
        assert_eq!((read_id, tag.link.as_str(), tag.zone), (id, "moves:DFW", zone));
        assert_eq!(tag.opened_at.as_ref(), written.get_datetime("opened_at").ok());
    }

    #[test]
    fn a_damaged_registration_is_seen() {
        let id = Bson::from(binary(&[7; 16]));
        assert_eq!(read(&doc! { "_id": &id, "link": "uplink:DFW" }), None);
        assert_eq!(read(&doc! { "_id": 7, "link": "uplink:DFW", "zone": "DFW" }), None);
    }
}
