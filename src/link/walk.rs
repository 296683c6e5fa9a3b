//! Walks two sides of one zone of one collection in the order of `_id`, a page at a time, and tells where they differ.
//!
//! Equal means equal bytes. The *lead* side is read first, the *follow* side later; what a difference then means is for the
//! caller to say. Memory is bounded by two pages, whatever either side holds.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument, RawDocumentBuf};

use crate::mongo::error::Error;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::scan::{self, Area};
use crate::mongo::server::Server;
use crate::sync::key::Key;
use crate::sync::names::Zone;

/// One side of a walk.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// Where it is.
    pub server: &'a Server,
    /// What is compared of it.
    pub area: Area<'a>,
}

/// A document that is not the same on both sides.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which document.
    pub key: Key,
    /// Its `_id`.
    pub id: RawBson,
    /// What the lead side has.
    pub lead: Option<RawDocumentBuf>,
    /// What the follow side has.
    pub follow: Option<RawDocumentBuf>,
}

/// What was found in a part of the zone.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Where the sides differ.
    pub differences: Vec<Difference>,
    /// How many documents were looked at on the follow side, or are only on the lead side.
    pub documents: usize,
    /// Everything up to this `_id` is compared, if that can be said already.
    pub done_up_to: Option<RawBson>,
}

/// A walk under way.
pub struct Walk<'a> {
    lead: End<'a>,
    follow: End<'a>,
    after: Option<RawBson>,
    range: Option<Range>,
    finished: bool,
}

/// A page of the lead side, while the follow side is compared with it.
struct Range {
    documents: Vec<Option<RawDocumentBuf>>,
    places: HashMap<Key, usize>,
    /// The last `_id` of the range; `None` if it goes to the end of the zone.
    last: Option<RawBson>,
    /// Up to where the follow side is compared.
    follow_after: Option<RawBson>,
}

impl<'a> Walk<'a> {
    /// A walk that begins after this `_id`.
    pub fn new(lead: End<'a>, follow: End<'a>, after: Option<RawBson>) -> Self {
        Self { lead, follow, after, range: None, finished: false }
    }

    /// True if both sides are at their end.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads the next page of the lead side, as it is at one time, not before `not_before`. Tells that time.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn lead(&mut self, not_before: Timestamp) -> Result<Timestamp, Error> {
        let after = self.after.as_ref().map(RawBson::as_raw_bson_ref);
        let page = scan::page(self.lead.server, self.lead.area, after, None, not_before).await?;
        let at = page.at;
        let last = match page.documents().next_back() {
            Some(last) => Some(scan::id_of(self.lead.server, last)?),
            None => None,
        };
        let mut places = HashMap::new();
        for (place, document) in page.documents().enumerate() {
            places.insert(key_of(self.lead, document)?, place);
        }
        let documents = page.into_documents().into_iter().map(Some).collect();
        self.range = Some(Range { documents, places, last, follow_after: self.after.clone() });
        Ok(at)
    }

    /// Compares the next page of the follow side, as it is at one time, not before `not_before`. Tells that time as well.
    /// `None`: the page of the lead side is done.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn follow(&mut self, not_before: Timestamp) -> Result<Option<(Chunk, Timestamp)>, Error> {
        let Some(mut range) = self.range.take() else { return Ok(None) };
        let after = range.follow_after.as_ref().map(RawBson::as_raw_bson_ref);
        let up_to = range.last.as_ref().map(RawBson::as_raw_bson_ref);
        let page = scan::page(self.follow.server, self.follow.area, after, up_to, not_before).await?;
        let at = page.at;
        let last = page.documents().next_back().map(|last| scan::id_of(self.follow.server, last)).transpose()?;
        let mut chunk = Chunk::default();
        for document in page.into_documents() {
            chunk.documents += 1;
            let key = key_of(self.follow, &document)?;
            let lead = range.places.get(&key).and_then(|place| range.documents[*place].take());
            if lead.as_ref().is_none_or(|lead| lead.as_bytes() != document.as_bytes()) {
                let id = scan::id_of(self.follow.server, &document)?;
                chunk.differences.push(Difference { key, id, lead, follow: Some(document) });
            }
        }
        // The follow side has no more in this range where it ends with the same `_id`, or with nothing.
        let reached = last.is_none() || (range.last.is_some() && last == range.last);
        if !reached {
            // With nothing left on the lead side, every page of the other is done for good.
            if range.last.is_none() {
                self.after.clone_from(&last);
                chunk.done_up_to.clone_from(&last);
            }
            range.follow_after = last;
            self.range = Some(range);
            return Ok(Some((chunk, at)));
        }
        for document in range.documents.into_iter().flatten() {
            chunk.documents += 1;
            let (key, id) = (key_of(self.lead, &document)?, scan::id_of(self.lead.server, &document)?);
            chunk.differences.push(Difference { key, id, lead: Some(document), follow: None });
        }
        self.finished = range.last.is_none();
        if let Some(last) = range.last {
            chunk.done_up_to = Some(last.clone());
            self.after = Some(last);
        }
        Ok(Some((chunk, at)))
    }
}

/// Some documents by their `_id`, as one side of a zone has them.
pub type Documents = HashMap<Key, RawDocumentBuf>;

/// Reads these documents of one side, as they are at one time, not before `not_before`. Those of other zones count as missing.
///
/// # Errors
/// If the server does not answer.
pub async fn these(
    end: End<'_>,
    ids: &HashMap<Key, RawBson>,
    not_before: Timestamp,
) -> Result<(Documents, Timestamp), Error> {
    let wanted: Wanted<'_> = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
    let snapshot = read::documents(end.server, &wanted, None, When::NotBefore(not_before)).await?;
    let mut found = HashMap::new();
    for (key, document) in snapshot.documents {
        if let Some(document) = document.filter(|document| is_in(end, document)) {
            found.insert(key, document);
        }
    }
    Ok((found, snapshot.at))
}

/// Where two sides differ in these documents.
pub fn compare(ids: HashMap<Key, RawBson>, mut lead: Documents, mut follow: Documents) -> Vec<Difference> {
    let sides = ids.into_iter().map(|(key, id)| {
        let (lead, follow) = (lead.remove(&key), follow.remove(&key));
        Difference { key, id, lead, follow }
    });
    sides.filter(|sides| bytes(sides.lead.as_ref()) != bytes(sides.follow.as_ref())).collect()
}

fn bytes(document: Option<&RawDocumentBuf>) -> Option<&[u8]> {
    document.map(|document| document.as_bytes())
}

fn is_in(end: End<'_>, document: &RawDocument) -> bool {
    document.get(end.server.partition_key()).is_ok_and(|key| end.area.which.includes(key))
}

/// True if the document is one of this zone.
pub fn is_in_zone(document: &RawDocument, partition_key: &str, zone: &Zone) -> bool {
    document.get_str(partition_key).is_ok_and(|value| value == zone.as_str())
}

fn key_of(end: End<'_>, document: &RawDocument) -> Result<Key, Error> {
    let id = document.get("_id").map_err(|error| end.server.malformed(error))?;
    let id = id.ok_or_else(|| end.server.unsuitable("it gave a document without _id"))?;
    Ok(Key::new(end.area.namespace, id))
}
