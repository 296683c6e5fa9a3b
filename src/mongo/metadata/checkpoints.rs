//! How far a link is: saved at its destination, in the transaction that applies what it covers.

use std::collections::HashMap;

use bson::raw::{RawArrayBuf, RawBson, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, Timestamp, doc, rawdoc};

use super::hub_edits::Note;
use crate::mongo::error::Error;
use crate::mongo::server::{Server, majority};
use crate::rules::names::{Link, Namespace, Zone};
use crate::rules::position::Position;

/// A link's state, as it is saved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoint {
    /// Until here the source's changes are applied.
    pub(crate) position: Option<Position>,
    /// By zone, until when documents may be newer than the position.
    pub(crate) ahead: HashMap<Zone, Timestamp>,
    /// What the initial sync has covered.
    pub(crate) copied: Vec<Part>,
    /// How far it is in the part that it is copying.
    pub(crate) copying: Option<CopiedUpTo>,
    /// Whether what it copies now it had copied before, so that what is missing at the source may have been deleted there.
    pub(crate) reconciling: Reconciling,
    /// Zones that it held once and left where they were: they are reconciled, too, if it holds them again.
    pub(crate) left: Vec<Part>,
    /// Which collections it brings changes from. A collection that was dropped and made again has another identity.
    pub(crate) collections: Vec<Identity>,
    /// Which collections it brings them to.
    pub(crate) destination_collections: Vec<Identity>,
    /// Small notes of hub edits.
    pub(crate) notes: Vec<Note>,
}

/// Why a link compares what it has copied before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reconciling {
    /// It does not.
    #[default]
    No,
    /// Its place in the change stream was lost, and with it the changes since then.
    Lost,
    /// An operator wants it. It has its place, and will see every change.
    Asked,
}

/// A collection and its UUID at one of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// What `listCollections` calls `info.uuid`.
    pub(crate) uuid: [u8; 16],
}

/// A zone of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// The zone.
    pub(crate) zone: Zone,
}

/// How far a copy is.
#[derive(Clone, Debug)]
pub(crate) struct CopiedUpTo {
    /// What is being copied.
    pub(crate) part: Part,
    /// The last `_id` that is done.
    pub(crate) after: RawBson,
}

impl Part {
    /// The zone of the collection.
    pub(crate) fn new(namespace: &Namespace, zone: &Zone) -> Self {
        Self { namespace: namespace.to_string(), zone: zone.clone() }
    }
}

/// A checkpoint that this process has taken over.
#[derive(Debug)]
pub(crate) struct Claim {
    /// What was saved.
    pub(crate) checkpoint: Checkpoint,
    /// The number that the next save must find.
    pub(crate) sequence: i64,
    /// The destination's time of the claim: whatever an earlier owner of the link committed is not after it.
    pub(crate) at: Timestamp,
}

/// Takes the link over. Whatever an earlier owner has under way at the destination can no longer commit.
///
/// # Errors
/// If the server does not answer, or holds what cannot be read.
pub(crate) async fn claim(server: &Server, link: &Link, holder: &str) -> Result<Claim, Error> {
    let command = doc! {
        "findAndModify": "checkpoints",
        "query": { "_id": link.to_string() },
        "update": {
            "$inc": { "seq": 1_i64 },
            "$set": { "holder": holder, "claimed_at": bson::DateTime::now(), "zone": link.zone.as_str() },
        },
        "new": true,
        "upsert": true,
        "writeConcern": majority(),
    };
    let reply = server.run("claiming its checkpoint", &server.metadata(), command).await?;
    let at = server.operation_time(&reply)?;
    let saved = reply.get_document("value").map_err(|_| server.unsuitable("it gave no checkpoint"))?;
    let sequence = saved.get_i64("seq").map_err(|_| damaged(server, link, "seq"))?;
    Ok(Claim { checkpoint: read(server, link, saved)?, sequence, at })
}

/// Who holds a link, for the message to the one who lost it.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn holder(server: &Server, link: &Link) -> Result<String, Error> {
    let saved = find(server, link).await?;
    Ok(saved.and_then(|saved| saved.get_str("holder").map(str::to_owned).ok()).unwrap_or("nobody knows who".to_owned()))
}

/// Reads a link's checkpoint without taking the link over.
///
/// # Errors
/// As [`claim`].
pub(crate) async fn peek(server: &Server, link: &Link) -> Result<Option<Checkpoint>, Error> {
    find(server, link).await?.map(|saved| read(server, link, &saved)).transpose()
}

/// A link's checkpoint as it was at this time of the server: it tells exactly what the server's documents of that time have in them.
///
/// # Errors
/// As [`claim`].
pub(crate) async fn at(server: &Server, link: &Link, time: Timestamp) -> Result<Option<Checkpoint>, Error> {
    let concern = doc! { "level": "snapshot", "atClusterTime": time };
    find_as(server, link, concern).await?.map(|saved| read(server, link, &saved)).transpose()
}

async fn find(server: &Server, link: &Link) -> Result<Option<Document>, Error> {
    find_as(server, link, doc! { "level": "majority" }).await
}

async fn find_as(server: &Server, link: &Link, concern: Document) -> Result<Option<Document>, Error> {
    let find = doc! {
        "find": "checkpoints", "filter": { "_id": link.to_string() }, "limit": 1, "readConcern": concern,
    };
    let reply = server.run("reading a checkpoint", &server.metadata(), find).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch")).ok();
    Ok(batch.and_then(|batch| batch.first()?.as_document()).cloned())
}

/// The statement that saves a checkpoint, if the saved one still has the number `sequence`.
pub(crate) fn save(link: &Link, sequence: i64, checkpoint: &Checkpoint) -> RawDocumentBuf {
    let mut set = doc! {
        "seq": sequence + 1,
        "ahead": checkpoint.ahead.iter().map(|(zone, until)| doc! { "zone": zone.as_str(), "until": until }).collect::<Vec<_>>(),
        "copied": checkpoint.copied.iter().map(part).collect::<Vec<_>>(),
        "left": checkpoint.left.iter().map(part).collect::<Vec<_>>(),
        "collections": checkpoint.collections.iter().map(identity).collect::<Vec<_>>(),
        "destination_collections": checkpoint.destination_collections.iter().map(identity).collect::<Vec<_>>(),
        "reconciling": checkpoint.reconciling.as_str(),
        "saved_at": bson::DateTime::now(),
    };
    let mut unset = Document::new();
    match &checkpoint.copying {
        Some(progress) => {
            let after = Bson::try_from(progress.after.clone()).unwrap_or(Bson::Null);
            let mut copying = part(&progress.part);
            copying.insert("after", after);
            set.insert("copying", copying);
        }
        None => drop(unset.insert("copying", "")),
    }
    if let Some(position) = &checkpoint.position {
        set.insert("token", Document::try_from(position.token()).unwrap_or_default());
        set.insert("cluster_time", position.cluster_time());
    }
    let mut set = crate::mongo::server::raw(&set);
    set.append(cstr!("hub_edits"), checkpoint.notes.iter().map(Note::to_raw).collect::<RawArrayBuf>());
    let mut update = rawdoc! { "$set": set };
    if !unset.is_empty() {
        update.append(cstr!("$unset"), crate::mongo::server::raw(&unset));
    }
    rawdoc! {
        "update": "checkpoints",
        "updates": [{ "q": { "_id": link.to_string(), "seq": sequence }, "u": update }],
    }
}

fn part(part: &Part) -> Document {
    doc! { "ns": &part.namespace, "zone": part.zone.as_str() }
}

impl Reconciling {
    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Lost => "lost",
            Self::Asked => "asked",
        }
    }

    fn read(saved: &str) -> Self {
        [Self::Lost, Self::Asked].into_iter().find(|reason| reason.as_str() == saved).unwrap_or_default()
    }
}

fn identity(identity: &Identity) -> Document {
    let uuid = Binary { subtype: BinarySubtype::Uuid, bytes: identity.uuid.to_vec() };
    doc! { "ns": &identity.namespace, "uuid": uuid }
}

fn read_identity(saved: &Document) -> Option<Identity> {
    let Bson::Binary(uuid) = saved.get("uuid")? else { return None };
    let uuid = uuid.bytes.as_slice().try_into().ok()?;
    Some(Identity { namespace: saved.get_str("ns").ok()?.to_owned(), uuid })
}

pub(crate) fn read(server: &Server, link: &Link, saved: &Document) -> Result<Checkpoint, Error> {
    let position = match saved.get_document("token") {
        Ok(token) => {
            let token = crate::mongo::server::raw(token);
            Some(Position::from_token(&token).ok_or_else(|| damaged(server, link, "token"))?)
        }
        Err(_) => None,
    };
    let ahead =
        documents(saved, "ahead").map(|bound| Ok((Zone::new(bound.get_str("zone")?), bound.get_timestamp("until")?)));
    let ahead: Result<_, bson::error::Error> = ahead.collect();
    let copied: Result<_, bson::error::Error> = documents(saved, "copied").map(read_part).collect();
    let left: Result<_, bson::error::Error> = documents(saved, "left").map(read_part).collect();
    let copying = match saved.get_document("copying") {
        Ok(copying) => {
            let part = read_part(copying).map_err(|_| damaged(server, link, "copying"))?;
            let after = crate::mongo::server::raw(copying);
            let after = after.get("after").ok().flatten().map(RawBson::from);
            Some(CopiedUpTo { part, after: after.ok_or_else(|| damaged(server, link, "copying"))? })
        }
        Err(_) => None,
    };
    Ok(Checkpoint {
        position,
        ahead: ahead.map_err(|_| damaged(server, link, "ahead"))?,
        copied: copied.map_err(|_| damaged(server, link, "copied"))?,
        copying,
        reconciling: saved.get_str("reconciling").map(Reconciling::read).unwrap_or_default(),
        left: left.map_err(|_| damaged(server, link, "left"))?,
        collections: documents(saved, "collections").filter_map(read_identity).collect(),
        destination_collections: documents(saved, "destination_collections").filter_map(read_identity).collect(),
        notes: documents(saved, "hub_edits").filter_map(|note| Note::read(&crate::mongo::server::raw(note))).collect(),
    })
}

fn documents<'a>(saved: &'a Document, key: &str) -> impl Iterator<Item = &'a Document> {
    saved.get_array(key).into_iter().flatten().filter_map(Bson::as_document)
}

fn read_part(saved: &Document) -> Result<Part, bson::error::Error> {
    Ok(Part { namespace: saved.get_str("ns")?.to_owned(), zone: Zone::new(saved.get_str("zone")?) })
}

fn damaged(server: &Server, link: &Link, field: &str) -> Error {
    server.unsuitable(&format!(
        "the checkpoint {link} is damaged ({field}): delete it from checkpoints, and the link starts with an initial sync"
    ))
}
