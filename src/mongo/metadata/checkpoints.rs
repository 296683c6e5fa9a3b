//! The checkpoint of a link: the position up to which the source's changes are applied at the destination.
//!
//! ```text
//! _id                      string     link: `uplink:DFW` at the hub, `downlink:DFW` at the spoke
//! zone                     string     zone that the link's spoke owns
//! seq                      int64      number of the newest claim or save; each adds one
//! holder                   string     process of the newest claim: host name and process id
//! claimed_at               date       time of the newest claim, by the process's clock
//! saved_at                 date       time of the newest save, by the process's clock
//! held_at                  date       time of the newest repair, by the clock of the repairing process
//! token                    document   resume token; absent until the link has opened a change stream
//! cluster_time             timestamp  cluster time of `token`, for people who look
//! change                   timestamp  cluster time of the newest applied change; absent if unknown
//! ahead                    array      { zone: string, until: timestamp }, see [`Checkpoint::ahead`]
//! copied                   array      { ns: string, zone: string }, see [`Checkpoint::copied`]
//! copying                  document   { ns: string, zone: string, after: any }, with `after` as in
//!                                     [`opaque::nested_id`]; absent while no copy is unfinished
//! left                     array      { ns: string, zone: string }, see [`Checkpoint::left`]
//! reconciling              string     `no`, `lost`, `asked`, `spoke_restored`, `hub_restored` or `restored_lost`, see
//!                                     [`Reconciling`]
//! claims                   int64      number of claims since the newest save; each raised `seq` without a change
//! collections              array      { ns: string, uuid: binary }: collections at the source
//! destination_collections  array      { ns: string, uuid: binary }: collections at the destination
//! hub_edits                array      { number: int64, edits: array }, as in [`super::hub_edits`]; downlinks only
//! source_id                binary     identity of the source's replica set, as in [`super::identity`]
//! opposite_seq             int64      `seq` of the opposite link's checkpoint at the time of the save, 0 if unknown
//! answered                 int64      `opposite_seq`, in either checkpoint, of the newest restore that the link has
//!                                     compared for, or is to compare for
//! partition_key            string     field that named a document's zone at the time of the save
//! ```
//!
//! - [`claim`] creates or takes over the document when a link starts, with write concern majority.
//! - [`save`] updates the document in the transaction of every batch, only if `seq` is still the number of the link's
//!   own last claim or save. So a process that has lost the link cannot commit.
//! - [`hold`] updates the document in the transaction of a repair, and the link's next save waits for that
//!   transaction.
//!
//! Nothing deletes the document. After an operator deletes it, the link starts with an initial sync.
//!
//! Index: only `_id`, and every command names the `_id`.

use std::collections::HashMap;

use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, Timestamp, Uuid, doc, rawdoc};

use super::hub_edits::Note;
use super::{CHECKPOINTS, majority, raw};
use crate::mongo::error::Error;
use crate::mongo::server::{Server, first_batch};
use crate::rules::names::{Direction, LinkName, Namespace, Zone};
use crate::rules::opaque;
use crate::rules::past::Restored;
use crate::rules::position::Position;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    /// The position in the source's change stream up to which all changes are applied.
    pub(crate) position: Option<Position>,
    /// The source's cluster time of the newest change that the link has applied, for [a look at the
    /// source](crate::mongo::tail::has_change_at). `None` if unknown.
    pub(crate) change: Option<Timestamp>,
    /// For each zone, the source's cluster time up to which documents at the destination may be newer than the
    /// position.
    pub(crate) ahead: HashMap<Zone, Timestamp>,
    pub(crate) copied: Vec<Part>,
    pub(crate) copying: Option<CopiedUpTo>,
    /// The reason why parts are copied again.
    pub(crate) reconciling: Reconciling,
    /// The parts that were copied once and still have documents at the destination: zones that the spoke stopped
    /// watching, and parts that wait for a reconcile. The next copy is a reconcile, in which a document missing at the
    /// source may count as deleted.
    pub(crate) left: Vec<Part>,
    /// The identities of the source's collections. A collection that was dropped and created again has a new one.
    pub(crate) collections: Vec<Identity>,
    pub(crate) destination_collections: Vec<Identity>,
    /// The notes of hub edits that are small enough to be saved in the checkpoint.
    pub(crate) notes: Vec<Note>,
    /// The identity of the source's replica set. `None` in a checkpoint of an earlier version.
    pub(crate) source_id: Option<Uuid>,
    /// The number of the opposite link's checkpoint, at the source, when this checkpoint was saved; 0 if unknown. A
    /// smaller number shows that the source was [restored](crate::rules::past).
    pub(crate) opposite_seq: i64,
    /// The number that has shown the newest restore for which the link has compared, or is to compare; 0 if there was
    /// none.
    pub(crate) answered: i64,
    /// The field that named a document's zone. `None` in a checkpoint of an earlier version.
    pub(crate) partition_key: Option<String>,
}

/// The reason why a link compares parts again after a first copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reconciling {
    /// No part is compared.
    #[default]
    No,
    /// The position has left the source's oplog, and the changes since then are lost.
    Lost,
    /// An operator asked for a resync. The position is valid, so the change stream still brings every change.
    Asked,
    /// A server was restored from a backup. The change stream still brings every change since the restore. What the
    /// restored server lacks comes from the other one, and nothing is deleted.
    Restored(Restored),
    /// A server was restored, and the position has left the source's oplog: as [`Self::Lost`], but nothing is deleted.
    RestoredLost,
}

/// A collection with the UUID at one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// The field `info.uuid` in the reply of `listCollections`.
    pub(crate) uuid: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    pub(crate) zone: Zone,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CopiedUpTo {
    pub(crate) part: Part,
    /// The last `_id` that is copied; a copy proceeds in the order of `_id`.
    pub(crate) after: RawBson,
}

impl Part {
    pub(crate) fn new(namespace: &Namespace, zone: &Zone) -> Self {
        Self { namespace: namespace.to_string(), zone: zone.clone() }
    }
}

/// A checkpoint that this process has taken over.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The checkpoint as an earlier process saved it.
    pub(crate) checkpoint: Checkpoint,
    /// The value of `seq` that the next save must find.
    pub(crate) sequence: i64,
    /// The destination's cluster time of the claim. No commit of an earlier holder is later.
    pub(crate) at: Timestamp,
}

/// Takes the link over. Transactions that an earlier holder has open at the destination can no longer commit. Fails if
/// the server does not answer, or the saved checkpoint is damaged.
pub(crate) async fn claim(server: &Server, link: &LinkName, holder: &str) -> Result<Claim, Error> {
    let command = doc! {
        "findAndModify": CHECKPOINTS,
        "query": { "_id": link.to_string() },
        "update": {
            "$inc": { "seq": 1_i64, "claims": 1_i64 },
            "$set": { "holder": holder, "claimed_at": DateTime::now(), "zone": link.zone.as_str() },
        },
        "new": true,
        "upsert": true,
        "writeConcern": majority(),
    };
    let reply = server.run("claiming the checkpoint", &server.metadata(), command).await?;
    let at = server.operation_time(&reply)?;
    let saved = reply.get_document("value").map_err(|_| server.unsuitable("its reply holds no checkpoint"))?;
    let sequence = saved.get_i64("seq").map_err(|_| damaged(server, link, "seq"))?;
    Ok(Claim { checkpoint: read(server, link, saved)?, sequence, at })
}

/// The name of the link's holder, for the error message of the process that lost the link.
pub(crate) async fn holder(server: &Server, link: &LinkName) -> Result<String, Error> {
    let saved = find(server, link).await?;
    Ok(saved.and_then(|saved| saved.get_str("holder").map(str::to_owned).ok()).unwrap_or("nobody knows who".to_owned()))
}

/// Reads a link's checkpoint without taking the link over. Fails if the server does not answer, or the saved checkpoint
/// is damaged.
pub(crate) async fn peek(server: &Server, link: &LinkName) -> Result<Option<Checkpoint>, Error> {
    find(server, link).await?.map(|saved| read(server, link, &saved)).transpose()
}

/// Reads a link's checkpoint as of a cluster time of the server. The result describes exactly the documents that a
/// snapshot read at the same time returns. Fails if the server does not answer, or the saved checkpoint is damaged.
pub(crate) async fn at(server: &Server, link: &LinkName, time: Timestamp) -> Result<Option<Checkpoint>, Error> {
    let concern = doc! { "level": "snapshot", "atClusterTime": time };
    find_as(server, link, concern).await?.map(|saved| read(server, link, &saved)).transpose()
}

/// As [`peek`], with the number of the newest save; 0 before the first one. Claims since then do not count.
pub(crate) async fn numbered(server: &Server, link: &LinkName) -> Result<Option<(i64, Checkpoint)>, Error> {
    let Some(saved) = find(server, link).await? else { return Ok(None) };
    let number = saved.get_i64("seq").map_err(|_| damaged(server, link, "seq"))?;
    let claims = saved.get_i64("claims").unwrap_or(0);
    Ok(Some((number - claims, read(server, link, &saved)?)))
}

async fn find(server: &Server, link: &LinkName) -> Result<Option<Document>, Error> {
    find_as(server, link, doc! { "level": "majority" }).await
}

async fn find_as(server: &Server, link: &LinkName, concern: Document) -> Result<Option<Document>, Error> {
    let find = doc! {
        "find": CHECKPOINTS, "filter": { "_id": link.to_string() }, "limit": 1, "readConcern": concern,
    };
    let reply = server.run("reading a checkpoint", &server.metadata(), find).await?;
    Ok(first_batch(&reply).next().cloned())
}

/// The command that writes to a checkpoint without moving it, and returns it. Within a transaction the command keeps
/// the link from saving until that transaction has ended.
pub(crate) fn hold(link: &LinkName) -> RawDocumentBuf {
    let now = RawBsonRef::DateTime(DateTime::now());
    rawdoc! {
        "findAndModify": CHECKPOINTS, "query": { "_id": link.to_string() },
        "update": { "$set": { "held_at": now } }, "new": true,
    }
}

/// The command that saves a checkpoint if `seq` is still `sequence`. Another value means that another process has
/// claimed the link; then the command matches no document.
pub(crate) fn save(link: &LinkName, sequence: i64, checkpoint: &Checkpoint) -> RawDocumentBuf {
    // Fields that every save sets.
    let bound = |(zone, until): (&Zone, &Timestamp)| doc! { "zone": zone.as_str(), "until": until };
    let mut set = doc! {
        "seq": sequence + 1,
        "ahead": checkpoint.ahead.iter().map(bound).collect::<Vec<_>>(),
        "copied": checkpoint.copied.iter().map(part).collect::<Vec<_>>(),
        "left": checkpoint.left.iter().map(part).collect::<Vec<_>>(),
        "collections": checkpoint.collections.iter().map(identity).collect::<Vec<_>>(),
        "destination_collections": checkpoint.destination_collections.iter().map(identity).collect::<Vec<_>>(),
        "reconciling": checkpoint.reconciling.as_str(),
        "opposite_seq": checkpoint.opposite_seq,
        "answered": checkpoint.answered,
        "claims": 0_i64,
        "saved_at": DateTime::now(),
    };
    // Fields that may be absent.
    let mut unset = Document::new();
    match &checkpoint.copying {
        Some(progress) => {
            let after = opaque::nested_id(progress.after.as_raw_bson_ref());
            let after = Bson::try_from(after).unwrap_or(Bson::Null);
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
    match checkpoint.change {
        Some(time) => drop(set.insert("change", time)),
        None => drop(unset.insert("change", "")),
    }
    if let Some(id) = checkpoint.source_id {
        set.insert("source_id", id);
    }
    if let Some(key) = &checkpoint.partition_key {
        set.insert("partition_key", key);
    }
    // Notes are raw documents, and join the raw form of the other fields.
    let mut set = raw(&set);
    set.append(cstr!("hub_edits"), checkpoint.notes.iter().map(Note::to_raw).collect::<RawArrayBuf>());
    let mut update = rawdoc! { "$set": set };
    if !unset.is_empty() {
        update.append(cstr!("$unset"), raw(&unset));
    }
    rawdoc! {
        "update": CHECKPOINTS,
        "updates": [{ "q": { "_id": link.to_string(), "seq": sequence }, "u": update }],
    }
}

fn part(part: &Part) -> Document {
    doc! { "ns": &part.namespace, "zone": part.zone.as_str() }
}

fn identity(identity: &Identity) -> Document {
    let uuid = Binary { subtype: BinarySubtype::Uuid, bytes: identity.uuid.to_vec() };
    doc! { "ns": &identity.namespace, "uuid": uuid }
}

impl Reconciling {
    /// True if the position in the change stream is valid, so that the link streams until the comparison can begin.
    pub(crate) fn keeps_position(self) -> bool {
        matches!(self, Self::Asked | Self::Restored(_))
    }

    /// The link that compares first, if one must wait for the other. The hub's versions come down first, so that a link
    /// that is quicker cannot make the hub's newer documents look deleted.
    pub(crate) fn first(self) -> Option<Direction> {
        match self {
            Self::No | Self::Lost | Self::RestoredLost => None,
            Self::Asked => Some(Direction::Downlink),
            Self::Restored(restored) => Some(restored.first()),
        }
    }

    /// True if the comparison deletes nothing.
    pub(crate) fn is_restored(self) -> bool {
        matches!(self, Self::Restored(_) | Self::RestoredLost)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Lost => "lost",
            Self::Asked => "asked",
            Self::Restored(Restored::Spoke) => "spoke_restored",
            Self::Restored(Restored::Hub) => "hub_restored",
            Self::RestoredLost => "restored_lost",
        }
    }

    fn read(saved: &str) -> Self {
        let restored = [Restored::Spoke, Restored::Hub].map(Self::Restored);
        [Self::Lost, Self::Asked, Self::RestoredLost]
            .into_iter()
            .chain(restored)
            .find(|reason| reason.as_str() == saved)
            .unwrap_or_default()
    }
}

/// Reads a saved checkpoint. Fails if a field is damaged: the message names the field and the remedy.
pub(crate) fn read(server: &Server, link: &LinkName, saved: &Document) -> Result<Checkpoint, Error> {
    decode(saved).map_err(|field| damaged(server, link, field))
}

fn damaged(server: &Server, link: &LinkName, field: &str) -> Error {
    server.unsuitable(&format!(
        "the checkpoint {link} is damaged ({field}): delete it from checkpoints, and the link starts with an initial \
         sync"
    ))
}

/// The checkpoint, or the name of a damaged field. Identities and notes that cannot be read are left out.
fn decode(saved: &Document) -> Result<Checkpoint, &'static str> {
    let position = match saved.get_document("token") {
        Ok(token) => Some(Position::from_token(&raw(token)).ok_or("token")?),
        Err(_) => None,
    };
    let copying = match saved.get_document("copying") {
        Ok(copying) => Some(read_copying(copying).ok_or("copying")?),
        Err(_) => None,
    };
    Ok(Checkpoint {
        position,
        change: saved.get_timestamp("change").ok(),
        ahead: documents(saved, "ahead").map(read_bound).collect::<Option<_>>().ok_or("ahead")?,
        copied: documents(saved, "copied").map(read_part).collect::<Option<_>>().ok_or("copied")?,
        copying,
        reconciling: saved.get_str("reconciling").map(Reconciling::read).unwrap_or_default(),
        left: documents(saved, "left").map(read_part).collect::<Option<_>>().ok_or("left")?,
        collections: documents(saved, "collections").filter_map(read_identity).collect(),
        destination_collections: documents(saved, "destination_collections").filter_map(read_identity).collect(),
        notes: documents(saved, "hub_edits").filter_map(|note| Note::read(&raw(note))).collect(),
        source_id: match saved.get("source_id") {
            Some(Bson::Binary(id)) => id.to_uuid().ok(),
            _ => None,
        },
        opposite_seq: saved.get_i64("opposite_seq").unwrap_or(0),
        answered: saved.get_i64("answered").unwrap_or(0),
        partition_key: saved.get_str("partition_key").map(str::to_owned).ok(),
    })
}

fn documents<'a>(saved: &'a Document, key: &str) -> impl Iterator<Item = &'a Document> {
    saved.get_array(key).into_iter().flatten().filter_map(Bson::as_document)
}

fn read_bound(saved: &Document) -> Option<(Zone, Timestamp)> {
    Some((Zone::new(saved.get_str("zone").ok()?), saved.get_timestamp("until").ok()?))
}

fn read_part(saved: &Document) -> Option<Part> {
    Some(Part { namespace: saved.get_str("ns").ok()?.to_owned(), zone: Zone::new(saved.get_str("zone").ok()?) })
}

fn read_copying(saved: &Document) -> Option<CopiedUpTo> {
    let after = opaque::id_of_nested(raw(saved).get("after").ok()??)?;
    Some(CopiedUpTo { part: read_part(saved)?, after })
}

fn read_identity(saved: &Document) -> Option<Identity> {
    let Bson::Binary(uuid) = saved.get("uuid")? else { return None };
    let uuid = uuid.bytes.as_slice().try_into().ok()?;
    Some(Identity { namespace: saved.get_str("ns").ok()?.to_owned(), uuid })
}

#[cfg(test)]
mod tests {
    use super::super::hub_edits::Edit;
    use super::super::saved::{first, upserted};
    use super::*;
    use crate::rules::fields::Fields;
    use crate::rules::key::Key;

    fn link() -> LinkName {
        LinkName::downlink(&Zone::new("DFW"))
    }

    fn part(zone: &str) -> Part {
        let namespace = Namespace { database: "app".to_owned(), collection: "orders.open".to_owned() };
        Part::new(&namespace, &Zone::new(zone))
    }

    fn identity(byte: u8) -> Identity {
        Identity { namespace: "app.orders.open".to_owned(), uuid: [byte; 16] }
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_saved() {
        let id = RawBson::Int32(7);
        let edit =
            Edit { key: Key::new(0, id.as_raw_bson_ref()), id: id.clone(), fields: Fields::All, is_uncertain: false };
        let token = rawdoc! { "_data": "826B04A69B000000022B0229296E04" };
        let checkpoint = Checkpoint {
            position: Position::from_token(&token),
            ahead: HashMap::from([(Zone::new("HOU"), Timestamp { time: 5, increment: 6 })]),
            copied: vec![part("DFW"), part("HOU")],
            copying: Some(CopiedUpTo { part: part("BOS"), after: id }),
            reconciling: Reconciling::Restored(Restored::Hub),
            left: vec![part("BOS")],
            change: Some(Timestamp { time: 6, increment: 1 }),
            collections: vec![identity(1)],
            destination_collections: vec![identity(2)],
            notes: vec![Note::new(41, &[edit])],
            source_id: Some(Uuid::from_bytes([7; 16])),
            opposite_seq: 12,
            answered: 11,
            partition_key: Some("_pk".to_owned()),
        };
        assert_eq!(decode(&upserted(&save(&link(), 41, &checkpoint))), Ok(checkpoint));
    }

    #[test]
    fn a_save_expects_its_number_and_sets_the_next_one() {
        let statement = first(&save(&link(), 41, &Checkpoint::default()), "updates");
        assert_eq!(statement.get_document("q").ok(), Some(&doc! { "_id": "downlink:DFW", "seq": 41_i64 }));
        let set = statement.get_document("u").and_then(|update| update.get_document("$set"));
        assert_eq!(set.and_then(|set| set.get_i64("seq")).ok(), Some(42));
    }

    #[test]
    fn a_save_without_a_copy_or_a_known_change_removes_those_of_the_last_one() {
        let statement = first(&save(&link(), 1, &Checkpoint::default()), "updates");
        let unset = statement.get_document("u").and_then(|update| update.get_document("$unset"));
        assert_eq!(unset.ok(), Some(&doc! { "copying": "", "change": "" }));
    }

    #[test]
    fn a_link_that_is_new_has_an_empty_checkpoint() {
        let claimed = doc! { "_id": "downlink:DFW", "seq": 1_i64, "holder": "host process 1", "zone": "DFW" };
        assert_eq!(decode(&claimed), Ok(Checkpoint::default()));
    }

    #[test]
    fn a_damaged_field_is_named() {
        let cases = [
            (doc! { "token": { "_data": "none" } }, "token"),
            (doc! { "ahead": [{ "zone": "DFW" }] }, "ahead"),
            (doc! { "copied": [{ "zone": "DFW" }] }, "copied"),
            (doc! { "left": [{ "ns": "app.orders" }] }, "left"),
            (doc! { "copying": { "ns": "app.orders", "zone": "DFW" } }, "copying"),
        ];
        for (saved, field) in cases {
            assert_eq!(decode(&saved), Err(field));
        }
    }
}
