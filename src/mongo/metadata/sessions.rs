//! Tags: the sessions that our own transactions run in, registered at the server they write to.
//!
//! A change event of a transaction carries its session's `lsid.id`. If that is registered in `_syncmetadata.sessions`, the
//! change is ours. A session is registered, majority-committed, before it is first used, so whoever sees the event of a
//! transaction can look its tag up.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype};
use mongodb::ClientSession;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::mongo::error::{Error, codes};
use crate::mongo::server::{Server, majority};
use crate::rules::names::Zone;
use crate::rules::reply::SessionId;

/// Whose transactions a session carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// The link, such as `uplink:DFW`.
    pub(crate) link: String,
    /// The zone of the link's spoke.
    pub(crate) zone: Zone,
    /// When the session was registered, by the clock of the process.
    pub(crate) opened_at: Option<DateTime>,
}

/// How many sessions of applications are remembered as such before they are asked for again.
const REMEMBERED: usize = 20_000;

/// What is known of the sessions that write to one server.
pub(crate) struct Tags {
    server: Server,
    known: HashMap<SessionId, Option<Tag>>,
}

impl Tags {
    /// Reads all that is registered.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn load(server: &Server) -> Result<Self, Error> {
        let mut tags = Self { server: server.clone(), known: HashMap::new() };
        tags.find(doc! {}).await?;
        Ok(tags)
    }

    /// The sessions that are ours.
    pub(crate) fn ours(&self) -> Vec<SessionId> {
        self.known.iter().filter(|(_, tag)| tag.is_some()).map(|(id, _)| *id).collect()
    }

    /// The newest session of each link whose tag is such, in ascending order: the one that it writes with, most likely.
    pub(crate) fn present(&self, is_such: impl Fn(&Tag) -> bool) -> Vec<SessionId> {
        let ours = self.known.iter().filter_map(|(id, tag)| Some((*id, tag.as_ref()?)));
        newest_of_each(ours.filter(|(_, tag)| is_such(tag)))
    }

    /// The tag of a session that was looked up.
    pub(crate) fn get(&self, session: &SessionId) -> Option<&Tag> {
        self.known.get(session)?.as_ref()
    }

    /// Looks up the sessions among these that are not known, all at once. Tells whether one of them is ours.
    ///
    /// # Errors
    /// If the server does not answer.
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
        // A registration is older than every event of its session, and what is read here was committed before the question
        // was asked; so no tag of an event that was seen is missed.
        let now = self.server.now().await?;
        let find = doc! {
            "find": "sessions", "filter": filter, "batchSize": 100_000, "singleBatch": true,
            "readConcern": { "level": "majority", "afterClusterTime": now },
        };
        let reply = self.server.run("reading its sessions", &self.server.metadata(), find).await?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        for session in batch.into_iter().flatten().filter_map(Bson::as_document) {
            // A registration that cannot be read would let our own changes pass for an application's.
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

/// Where a link's session at one server is kept between one generation of its loop and the next. It must not go back to the
/// driver's pool, from which anything else would get it.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Sessions>>);

/// A link's session, and those before it, which must not go back to the pool either.
#[derive(Default)]
struct Sessions {
    present: Option<ClientSession>,
    former: VecDeque<ClientSession>,
}

/// How long a session's registration outlives it: 60 days, longer than any oplog goes back.
const REMEMBERED_MS: i64 = 60 * 24 * 3_600_000;

/// So many former sessions are kept from the pool. Older ones have ended at the server long ago.
const FORMER: usize = 50;

/// A link's session, for as long as one generation of its loop uses it.
pub(crate) struct TaggedSession(OwnedMutexGuard<Sessions>);

impl TaggedSession {
    /// The driver's session.
    pub(crate) fn get(&mut self) -> &mut ClientSession {
        self.0.present.as_mut().expect("it was filled before it was given out")
    }
}

/// A session at this server whose transactions carry a tag of this name, which is a link's or [`moves_of`] an uplink's. What earlier
/// sessions of that name left open is aborted: the server would keep the transaction of a process that was killed, and every
/// document in it, locked for a minute (`transactionLifetimeLimitSeconds`).
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn tagged_session(
    server: &Server,
    name: &str,
    zone: &Zone,
    slot: &Slot,
) -> Result<TaggedSession, Error> {
    // Whoever had it before is on its way out.
    let wait = async { Ok(slot.0.clone().lock_owned().await) };
    let mut slot = server.bounded("waiting for the session of its former self", wait).await?;
    let present = new_session(server, name, zone).await?;
    let former = slot.present.replace(present);
    slot.former.extend(former);
    if slot.former.len() > FORMER {
        slot.former.pop_front();
    }
    let mut session = TaggedSession(slot);
    kill_former(server, name, session.get()).await?;
    Ok(session)
}

async fn new_session(server: &Server, name: &str, zone: &Zone) -> Result<ClientSession, Error> {
    // Sessions that are registered for other links stay in hand until one is found, or the pool would give them again.
    let mut others = Vec::new();
    loop {
        let session = server.bounded("starting a session", server.client().start_session().into_future()).await?;
        if register(server, &session, name, zone).await? {
            return Ok(session);
        }
        others.push(session);
    }
}

/// Ends the sessions that had the name before, and with them the transactions that they may have left open. Their
/// registrations stay until their last change events have surely left every oplog.
async fn kill_former(server: &Server, name: &str, present: &ClientSession) -> Result<(), Error> {
    const AT_MOST: i32 = 1_000;
    let present = present.id().get("id").cloned().unwrap_or(Bson::Null);
    let former = doc! { "link": name, "_id": { "$ne": present }, "ended_at": { "$exists": false } };
    let find = doc! {
        "find": "sessions", "filter": former, "sort": { "opened_at": -1 },
        "limit": AT_MOST, "batchSize": AT_MOST, "singleBatch": true,
    };
    let reply = server.run("reading its sessions", &server.metadata(), find).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let ids = batch.into_iter().flatten().filter_map(|session| session.as_document()?.get("_id"));
    let ids: Vec<Bson> = ids.cloned().collect();
    if ids.is_empty() {
        return Ok(());
    }
    let sessions: Vec<Document> = ids.iter().map(|id| doc! { "id": id }).collect();
    let admin = server.client().database("admin");
    match server.run("ending the sessions of its former self", &admin, doc! { "killSessions": sessions }).await {
        // They end by themselves, a minute later.
        Err(error) if error.code() == Some(codes::UNAUTHORIZED) => tracing::debug!(%error, "sessions not ended"),
        result => drop(result?),
    }
    note_ended(server, name, &ids).await
}

/// Notes that these sessions have ended, and forgets those that have long ago.
async fn note_ended(server: &Server, name: &str, ids: &[Bson]) -> Result<(), Error> {
    let now = bson::DateTime::now();
    let ended = doc! {
        "update": "sessions",
        "updates": [{ "q": { "_id": { "$in": ids } }, "u": { "$set": { "ended_at": now } }, "multi": true }],
    };
    server.run("noting ended sessions", &server.metadata(), ended).await?;
    let long_ago = bson::DateTime::from_millis(now.timestamp_millis().saturating_sub(REMEMBERED_MS));
    let forget = doc! {
        "delete": "sessions",
        "deletes": [{ "q": { "link": name, "ended_at": { "$lt": long_ago } }, "limit": 0 }],
    };
    server.run("forgetting old sessions", &server.metadata(), forget).await.map(drop)
}

/// The name under which an uplink's session is registered that carries those of its transactions in which a document leaves its
/// zone. Others may hold the zone that it goes to, and so these transactions are told by every stream.
pub(crate) fn moves_of(zone: &Zone) -> String {
    format!("moves:{zone}")
}

/// The name under which the sessions of repairs of a zone are registered. At the hub what they write counts as the zone's own, as it
/// comes from its spoke.
pub(crate) fn repair_of(zone: &Zone) -> String {
    format!("repair:{zone}")
}

/// A session for repairs in a zone. Unlike a link's it stands beside others of its name.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn repair_session(server: &Server, zone: &Zone) -> Result<ClientSession, Error> {
    new_session(server, &repair_of(zone), zone).await
}

/// A session for repairs is not used any more. Its registration stays for as long as change events of it may be seen.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn end_repair(server: &Server, session: &ClientSession, zone: &Zone) -> Result<(), Error> {
    let id = session.id().get("id").cloned().unwrap_or(Bson::Null);
    note_ended(server, &repair_of(zone), &[id]).await
}

/// Registers a session. `false` if it is registered under another name.
async fn register(server: &Server, session: &ClientSession, name: &str, zone: &Zone) -> Result<bool, Error> {
    let id = session.id().get("id").cloned().unwrap_or(Bson::Null);
    let insert = doc! {
        "insert": "sessions",
        "documents": [{
            "_id": &id, "link": name, "zone": zone.as_str(), "opened_at": bson::DateTime::now(),
        }],
        "writeConcern": majority(),
    };
    match server.run("registering a session", &server.metadata(), insert).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(codes::DUPLICATE_KEY) => {
            let find = doc! { "find": "sessions", "filter": { "_id": id, "link": name }, "limit": 1 };
            let reply = server.run("reading its sessions", &server.metadata(), find).await?;
            let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
            Ok(found.is_ok_and(|batch| !batch.is_empty()))
        }
        Err(error) => Err(error),
    }
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

/// The session's id as the server has it.
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
}
