//! Compares two sides of one zone of one collection in the order of `_id`, a page at a time, and returns the
//! differences.
//!
//! Equal means equal bytes. A walk reads a page of the *lead* side, then the same range of `_id`s from the *follow*
//! side. The caller decides on the meaning of a difference. Memory holds at most a few pages, whatever the size of the
//! zone.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument, RawDocumentBuf};

use crate::mongo::error::Error;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::scan::{self, Area, Page, PageSize, Range};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::Zone;

#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) server: &'a Server,
    pub(crate) area: Area<'a>,
    pub(crate) secondary: bool,
}

/// A document that differs between the two sides.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) key: Key,
    pub(crate) id: RawBson,
    /// The document on the lead side; `None` if missing.
    pub(crate) lead: Option<RawDocumentBuf>,
    /// The document on the follow side; `None` if missing.
    pub(crate) follow: Option<RawDocumentBuf>,
}

/// Result of the comparison of one page of the follow side.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) differences: Vec<Difference>,
    /// Number of documents compared: all in the page of the follow side, and all that only the lead side has.
    pub(crate) documents: usize,
    /// Number of documents left out at either side, because no link can carry their `_id`.
    pub(crate) unreadable: usize,
    /// Stand-ins for those of the lead side.
    pub(crate) left_out: Vec<RawBson>,
    /// The zone is compared up to and including this `_id`; `None` if no further than before.
    pub(crate) done_up_to: Option<RawBson>,
}

pub(crate) struct Walk<'a> {
    lead: End<'a>,
    follow: End<'a>,
    after: Option<RawBson>,
    leading: Option<Leading>,
    sizes: [PageSize; 2],
    finished: bool,
}

/// A page of the lead side during its comparison with the follow side.
struct Leading {
    page: Page,
    /// True for each document of the page that the follow side also has.
    found: Vec<bool>,
    /// Number of documents at the start of the page that were equal in the same order.
    compared: usize,
    /// Index of the remaining documents by key, built at the first difference.
    places: Option<HashMap<Key, usize>>,
    /// Last `_id` of the page; `None` for the empty page, whose range extends to the end of the zone.
    last: Option<RawBson>,
    /// Last `_id` compared on the follow side.
    follow_after: Option<RawBson>,
}

/// A page of the lead side that is read but not compared yet, with its last `_id`.
pub(crate) struct Ahead(Page, Option<RawBson>);

/// A page of the lead side to be read, possibly while the page before is worked on.
pub(crate) struct Lead<'a> {
    end: End<'a>,
    size: PageSize,
    after: Option<RawBson>,
}

impl Lead<'_> {
    /// Reads the page at one cluster time, not before `not_before`.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn read(&self, not_before: Timestamp) -> Result<Ahead, Error> {
        read_ahead(self.end, self.size, self.after.as_ref(), not_before).await
    }
}

/// A page of the follow side that is read but not compared yet.
pub(crate) struct Followed {
    page: Page,
    last: Option<RawBson>,
    reaches_end: bool,
}

impl Followed {
    /// Last `_id` of the page, after which the next page begins; `None` if the page reaches the end of its range.
    pub(crate) fn next(&self) -> Option<&RawBson> {
        self.last.as_ref().filter(|_| !self.reaches_end)
    }

    /// Adapts the size of the next page of the follow side.
    pub(crate) fn teach(&self, size: &mut PageSize) {
        size.learn(&self.page);
    }
}

impl Ahead {
    /// Adapts the size of the next page of the lead side.
    pub(crate) fn teach(&self, size: &mut PageSize) {
        size.learn(&self.0);
    }

    /// The cluster time of the page.
    pub(crate) fn at(&self) -> Timestamp {
        self.0.at
    }

    /// Last `_id` of the page; `None` for the empty page at the end of the zone.
    pub(crate) fn last(&self) -> Option<&RawBson> {
        self.1.as_ref()
    }
}

/// Reads the page of the lead side after an `_id`, at one cluster time, not before `not_before`.
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

/// Reads the page of the follow side after one `_id` and up to another, at one cluster time, not before `not_before`.
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
    // An empty page reaches the end of the range, and so does a page with the lead page's last `_id`.
    let reaches_end = last.is_none() || (last_of_lead.is_some() && last.as_ref() == last_of_lead);
    Ok(Followed { page, last, reaches_end })
}

impl<'a> Walk<'a> {
    /// Begins after an `_id`, or at the start of the zone.
    pub(crate) fn new(lead: End<'a>, follow: End<'a>, after: Option<RawBson>) -> Self {
        Self { lead, follow, after, leading: None, sizes: [PageSize::default(); 2], finished: false }
    }

    /// True if both sides are at their end.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// The page of the lead side after everything compared so far.
    pub(crate) fn lead(&self) -> Lead<'a> {
        Lead { end: self.lead, size: self.sizes[0], after: self.after.clone() }
    }

    /// The page of the lead side after the present one; `None` if the present one reaches the end of the zone.
    pub(crate) fn next_lead(&self) -> Option<Lead<'a>> {
        let after = self.leading.as_ref()?.last.clone()?;
        Some(Lead { after: Some(after), ..self.lead() })
    }

    /// Begins the comparison of a page of the lead side.
    pub(crate) fn begin(&mut self, ahead: Ahead) {
        ahead.teach(&mut self.sizes[0]);
        let Ahead(page, last) = ahead;
        let (found, follow_after) = (vec![false; page.len()], self.after.clone());
        self.leading = Some(Leading { page, found, compared: 0, places: None, last, follow_after });
    }

    /// Reads and compares the next page of the follow side, at one cluster time, not before `not_before`. Returns the
    /// result with the cluster time, or `None` if the page of the lead side is done.
    pub(crate) async fn follow(&mut self, not_before: Timestamp) -> Result<Option<(Chunk, Timestamp)>, Error> {
        let Some(leading) = &self.leading else { return Ok(None) };
        let (after, up_to) = (leading.follow_after.as_ref(), leading.last.as_ref());
        let followed = read_followed(self.follow, self.sizes[1], after, up_to, not_before).await?;
        followed.teach(&mut self.sizes[1]);
        let at = followed.page.at;
        Ok(Some((self.compare(followed)?, at)))
    }

    /// Compares the next page of the follow side with the present page of the lead side.
    ///
    /// # Errors
    /// If a document is malformed.
    ///
    /// # Panics
    /// If no page of the lead side has begun.
    pub(crate) fn compare(&mut self, followed: Followed) -> Result<Chunk, Error> {
        let mut leading = self.leading.take().expect("a page of the lead side comes first");
        let Followed { page, last, reaches_end } = followed;
        let left_out = std::mem::take(&mut leading.page.left_out);
        let unreadable = page.left_out.len() + left_out.len();
        let mut chunk = Chunk { documents: page.len(), unreadable, left_out, ..Chunk::default() };
        leading.compare(&page, self.follow, &mut chunk)?;
        if !reaches_end {
            // The lead side has no more documents, so the range of each page of the follow side is done.
            if leading.last.is_none() {
                self.after.clone_from(&last);
                chunk.done_up_to.clone_from(&last);
            }
            leading.follow_after = last;
            self.leading = Some(leading);
            return Ok(chunk);
        }
        // The follow side has no more documents in the range, so the rest of the lead side's page is missing there.
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
    fn compare(&mut self, follow: &Page, end: End<'_>, chunk: &mut Chunk) -> Result<(), Error> {
        let mut number = 0;
        // Equal documents in the same order need no look-up.
        while self.places.is_none()
            && self.compared < self.page.len()
            && number < follow.len()
            && self.page.document(self.compared).as_bytes() == follow.document(number).as_bytes()
        {
            self.found[self.compared] = true;
            self.compared += 1;
            number += 1;
        }
        // After the first difference, documents are looked up by key.
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

/// Documents of one side of a zone, by key.
pub(crate) type Documents = HashMap<Key, RawDocumentBuf>;

/// Reads documents of one side by `_id`, at one cluster time, not before `not_before`. Returns the documents with the
/// cluster time. Documents of other zones count as missing.
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

/// Differences between two sides in the given documents.
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
    end.area.which.includes(lookup::value(document, end.server.partition_key()))
}

pub(crate) fn is_in_zone(document: &RawDocument, partition_key: &str, zone: &Zone) -> bool {
    lookup::text(document, partition_key) == Some(zone.as_str())
}

fn key_of(end: End<'_>, document: &RawDocument) -> Result<Key, Error> {
    let id = document.get("_id").map_err(|error| end.server.malformed(error))?;
    let id = id.ok_or_else(|| end.server.unsuitable("it returned a document without _id"))?;
    Ok(Key::new(end.area.namespace, id))
}
