//! Walks two sides of one zone of one collection in the order of `_id`, a page at a time, and tells where they differ.
//!
//! Equal means equal bytes. The *lead* side is read a page at a time, and the *follow* side over the same range of `_id`s; what a
//! difference then means is for the caller to say. Memory is bounded by a few pages, whatever either side holds.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument, RawDocumentBuf};

use crate::mongo::error::Error;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::scan::{self, Area, Page, PageSize, Range};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::Zone;

/// One side of a walk.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    /// Where it is.
    pub(crate) server: &'a Server,
    /// What is compared of it.
    pub(crate) area: Area<'a>,
    /// Whether a secondary may answer.
    pub(crate) secondary: bool,
}

/// A document that is not the same on both sides.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// Which document.
    pub(crate) key: Key,
    /// Its `_id`.
    pub(crate) id: RawBson,
    /// What the lead side has.
    pub(crate) lead: Option<RawDocumentBuf>,
    /// What the follow side has.
    pub(crate) follow: Option<RawDocumentBuf>,
}

/// What was found in a part of the zone.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Where the sides differ.
    pub(crate) differences: Vec<Difference>,
    /// How many documents were looked at on the follow side, or are only on the lead side.
    pub(crate) documents: usize,
    /// Everything up to this `_id` is compared, if that can be said already.
    pub(crate) done_up_to: Option<RawBson>,
}

/// A walk under way.
pub(crate) struct Walk<'a> {
    lead: End<'a>,
    follow: End<'a>,
    after: Option<RawBson>,
    leading: Option<Leading>,
    sizes: [PageSize; 2],
    finished: bool,
}

/// A page of the lead side, while the follow side is compared with it.
struct Leading {
    page: Page,
    /// Which of its documents the follow side has as well.
    found: Vec<bool>,
    /// So many of them are compared.
    compared: usize,
    /// Where the others are, once the two sides were seen to differ.
    places: Option<HashMap<Key, usize>>,
    /// The last `_id` of the page; `None` if it goes to the end of the zone.
    last: Option<RawBson>,
    /// Up to where the follow side is compared.
    follow_after: Option<RawBson>,
}

/// A page of the lead side that was read, and is not compared yet.
pub(crate) struct Ahead(Page, Option<RawBson>);

/// A page of the follow side that was read, and is not compared yet.
pub(crate) struct Followed {
    page: Page,
    last: Option<RawBson>,
    reaches_end: bool,
}

impl Followed {
    /// The last `_id` in it, if it does not reach the end of its range: there the next page begins.
    pub(crate) fn next(&self) -> Option<&RawBson> {
        self.last.as_ref().filter(|_| !self.reaches_end)
    }

    /// How large pages of this side should be.
    pub(crate) fn teach(&self, size: &mut PageSize) {
        size.learn(&self.page);
    }
}

impl Ahead {
    /// How large pages of this side should be.
    pub(crate) fn teach(&self, size: &mut PageSize) {
        size.learn(&self.0);
    }

    /// The last `_id` in it; `None` if it is empty, and nothing comes after it.
    pub(crate) fn last(&self) -> Option<&RawBson> {
        self.1.as_ref()
    }
}

/// Reads the page of a lead side behind this `_id`, as it is at one time, not before `not_before`.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn read_ahead(
    lead: End<'_>,
    size: PageSize,
    after: Option<&RawBson>,
    not_before: Timestamp,
) -> Result<Ahead, Error> {
    let range =
        Range { size, secondary: lead.secondary, ..Range::from(after.map(RawBson::as_raw_bson_ref), not_before) };
    let page = scan::page(lead.server, lead.area, range).await?;
    let last = page.documents().next_back().map(|last| scan::id_of(lead.server, last)).transpose()?;
    Ok(Ahead(page, last))
}

/// Reads the page of a follow side behind this `_id` and up to that one, as it is at one time, not before `not_before`.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn read_followed(
    follow: End<'_>,
    size: PageSize,
    after: Option<&RawBson>,
    up_to: Option<&RawBson>,
    not_before: Timestamp,
) -> Result<Followed, Error> {
    let (after, last_of_lead) = (after.map(RawBson::as_raw_bson_ref), up_to);
    let up_to = up_to.map(RawBson::as_raw_bson_ref);
    let range = Range { after, up_to, not_before, size, secondary: follow.secondary };
    let page = scan::page(follow.server, follow.area, range).await?;
    let last = page.documents().next_back().map(|last| scan::id_of(follow.server, last)).transpose()?;
    // It has no more in this range where it ends with the same `_id`, or with nothing.
    let reaches_end = last.is_none() || (last_of_lead.is_some() && last.as_ref() == last_of_lead);
    Ok(Followed { page, last, reaches_end })
}

impl<'a> Walk<'a> {
    /// A walk that begins after this `_id`.
    pub(crate) fn new(lead: End<'a>, follow: End<'a>, after: Option<RawBson>) -> Self {
        Self { lead, follow, after, leading: None, sizes: [PageSize::default(); 2], finished: false }
    }

    /// True if both sides are at their end.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads the next page of the lead side, as it is at one time, not before `not_before`. Tells that time.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn lead(&mut self, not_before: Timestamp) -> Result<Timestamp, Error> {
        let ahead = read_ahead(self.lead, self.sizes[0], self.after.as_ref(), not_before).await?;
        ahead.teach(&mut self.sizes[0]);
        let at = ahead.0.at;
        self.begin(ahead);
        Ok(at)
    }

    /// This page of the lead side is compared now.
    pub(crate) fn begin(&mut self, Ahead(page, last): Ahead) {
        let (found, follow_after) = (vec![false; page.len()], self.after.clone());
        self.leading = Some(Leading { page, found, compared: 0, places: None, last, follow_after });
    }

    /// Reads and compares the next page of the follow side, as it is at one time, not before `not_before`. Tells that time as well.
    /// `None`: the page of the lead side is done.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn follow(&mut self, not_before: Timestamp) -> Result<Option<(Chunk, Timestamp)>, Error> {
        let Some(leading) = &self.leading else { return Ok(None) };
        let (after, up_to) = (leading.follow_after.as_ref(), leading.last.as_ref());
        let followed = read_followed(self.follow, self.sizes[1], after, up_to, not_before).await?;
        followed.teach(&mut self.sizes[1]);
        let at = followed.page.at;
        Ok(Some((self.compare(followed)?, at)))
    }

    /// Compares the next page of the follow side with that of the lead side.
    ///
    /// # Errors
    /// If a document is damaged.
    ///
    /// # Panics
    /// If no page of the lead side was begun.
    pub(crate) fn compare(&mut self, followed: Followed) -> Result<Chunk, Error> {
        let mut leading = self.leading.take().expect("a page of the lead side comes first");
        let Followed { page, last, reaches_end } = followed;
        let mut chunk = Chunk { documents: page.len(), ..Chunk::default() };
        leading.compare(&page, self.follow, &mut chunk)?;
        if !reaches_end {
            // With nothing left on the lead side, every page of the other is done for good.
            if leading.last.is_none() {
                self.after.clone_from(&last);
                chunk.done_up_to.clone_from(&last);
            }
            leading.follow_after = last;
            self.leading = Some(leading);
            return Ok(chunk);
        }
        for (document, _) in leading.page.documents().zip(&leading.found).filter(|(_, found)| !**found) {
            chunk.documents += 1;
            let (key, id) = (key_of(self.lead, document)?, scan::id_of(self.lead.server, document)?);
            chunk.differences.push(Difference { key, id, lead: Some(document.to_owned()), follow: None });
        }
        self.finished = leading.last.is_none();
        if let Some(last) = leading.last {
            chunk.done_up_to = Some(last.clone());
            self.after = Some(last);
        }
        Ok(chunk)
    }
}

impl Leading {
    /// Compares a page of the follow side.
    fn compare(&mut self, follow: &Page, end: End<'_>, chunk: &mut Chunk) -> Result<(), Error> {
        let mut number = 0;
        // As long as both sides hold the same documents in the same order, nothing needs to be looked up.
        while self.places.is_none()
            && self.compared < self.page.len()
            && number < follow.len()
            && self.page.document(self.compared).as_bytes() == follow.document(number).as_bytes()
        {
            self.found[self.compared] = true;
            self.compared += 1;
            number += 1;
        }
        for document in follow.documents().skip(number) {
            let key = key_of(end, document)?;
            let place = self.place(&key, end)?;
            let lead = place.map(|place| self.page.document(place));
            if let Some(place) = place {
                self.found[place] = true;
            }
            if lead.map(RawDocument::as_bytes) != Some(document.as_bytes()) {
                let id = scan::id_of(end.server, document)?;
                let lead = lead.map(RawDocument::to_owned);
                chunk.differences.push(Difference { key, id, lead, follow: Some(document.to_owned()) });
            }
        }
        Ok(())
    }

    fn place(&mut self, key: &Key, end: End<'_>) -> Result<Option<usize>, Error> {
        if self.places.is_none() {
            let mut places = HashMap::new();
            for (place, document) in self.page.documents().enumerate().skip(self.compared) {
                places.insert(key_of(end, document)?, place);
            }
            self.places = Some(places);
        }
        Ok(self.places.as_ref().and_then(|places| places.get(key).copied()))
    }
}

/// Some documents by their `_id`, as one side of a zone has them.
pub(crate) type Documents = HashMap<Key, RawDocumentBuf>;

/// Reads these documents of one side, as they are at one time, not before `not_before`. Those of other zones count as missing.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn these(
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
pub(crate) fn compare(ids: HashMap<Key, RawBson>, mut lead: Documents, mut follow: Documents) -> Vec<Difference> {
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
pub(crate) fn is_in_zone(document: &RawDocument, partition_key: &str, zone: &Zone) -> bool {
    document.get_str(partition_key).is_ok_and(|value| value == zone.as_str())
}

fn key_of(end: End<'_>, document: &RawDocument) -> Result<Key, Error> {
    let id = document.get("_id").map_err(|error| end.server.malformed(error))?;
    let id = id.ok_or_else(|| end.server.unsuitable("it gave a document without _id"))?;
    Ok(Key::new(end.area.namespace, id))
}
