//! The retry of a dead letter: the document's present version at the source, in place of the refused change.

use bson::raw::{CStr, RawBson, RawDocument, RawDocumentBuf};
use bson::{Timestamp, rawdoc};

use super::apply::mark::Mark;
use super::apply::work::{Origin, Work};
use super::lifecycle::Link;
use super::parked::Parked;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters;
use crate::mongo::metadata::set_aside::{self, Aside, Content};
use crate::mongo::read::{self, Wanted, When};
use crate::rules;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::lost::lost;
use crate::rules::names::{Direction, Zone};
use crate::rules::retry::{Present, RefusedDocument, Retry};
use crate::rules::step::{Read, Step, Write, Zones};

/// Tries a refused change again. At the hub, the document is read at the spoke and applied. At the spoke, the hub's
/// version is the truth, and the decision about the document brings it.
pub(super) async fn retry<S: Source>(link: &mut Link<'_, S>, key: &Key, letter: &Parked) -> Result<(), Error> {
    // The letter stands for a document that cannot be named at the source.
    if letter.is_unnamed {
        return Ok(());
    }
    if S::DIRECTION == Direction::Downlink {
        link.retries.decide(key);
        link.spoke.pair.unsettled.add(key.clone(), letter.id.clone());
        return Ok(());
    }
    // From here on, changes of the document are not held back. The saved letter stays until the retry succeeds.
    let later_changes = link.parked.later_changes(key);
    link.parked.remove(key);
    let (spoke, hub, own) = (link.source.server().clone(), link.destination_server(), link.spoke.zone.clone());
    let id = letter.id.as_raw_bson_ref();
    let wanted: Wanted<'_> = [(key.clone(), id)].into();
    let mut read = read::documents(&spoke, &wanted, None, When::NotBefore(spoke.now().await?)).await?;
    let mut at_hub = read::documents(&hub, &wanted, None, When::NotBefore(hub.now().await?)).await?;
    let (document, at_hub) = (read.documents.remove(key).flatten(), at_hub.documents.remove(key).flatten());
    let field = hub.partition_field();
    let zone_of = |document: &Option<RawDocumentBuf>| {
        document.as_ref().map(|document| lookup::value(document, field.as_str()).map(RawBson::from))
    };
    let (zone, hub_zone) = (zone_of(&document), zone_of(&at_hub));
    let retry = rules::retry::retry(RefusedDocument {
        present: match &zone {
            None => Present::Absent,
            Some(None) => Present::Unstamped,
            Some(Some(RawBson::String(zone))) if *zone == own.as_str() => Present::Own,
            Some(Some(_)) => Present::Elsewhere,
        },
        never_accepted: letter.is_fresh,
        is_deleted: letter.is_deleted,
        is_same_zone: zone == hub_zone,
        is_foreign: !link.spoke.pair.foreign.among(&spoke, || wanted).await?.is_empty(),
    });
    let inserted = document.as_deref().map(|document| with_zone(document, field, &own));
    let writes = match (retry, document.as_deref(), inserted.as_deref()) {
        (Retry::Put, Some(document), _) => vec![Write::Replace { document, upsert: true }],
        (Retry::Stamp, ..) => vec![Write::Read(Read::Stamp { fresh: letter.is_fresh, document: None })],
        (Retry::Move, Some(document), _) => vec![Write::Replace { document, upsert: false }],
        (Retry::InsertAndMove, Some(document), Some(inserted)) => {
            vec![Write::Insert(inserted), Write::Replace { document, upsert: false }]
        }
        (Retry::Delete, ..) => vec![Write::Delete],
        _ => Vec::new(),
    };
    let within = link.source.zones();
    let step = |write| Step { event: 0, key: key.clone(), id, zones: Zones::of(&within), write, hub_edit: None };
    let steps: Vec<Step<'_>> = writes.into_iter().map(step).collect();
    let again = Again(letter);
    let read_at = [(key.clone(), read.at)].into();
    let inferred = [(key.clone(), Inference::Retry)].into();
    let work = Work { steps, last: read.at, read_at, inferred, decides: true, ..Work::empty(&again) };
    link.apply(work).await?;
    // Refused again: the saved letter keeps its count, so the shown one does.
    if link.parked.contains(key) {
        link.parked.count(key, later_changes);
        return Ok(());
    }
    if retry == Retry::GiveUp {
        return give_up(link, key, letter).await;
    }
    // The hub's version, or the hub's delete, came down before the letter was there to prevent that.
    let reason = if document.is_some() { OVERWRITTEN } else { GIVEN_UP };
    let aside = set_changes_aside(link, letter, reason, |events| lost(document.as_deref(), events)).await?;
    link.remove_letter(key, letter, aside).await
}

/// Ends a dead letter whose document the spoke no longer has. The refused change and later ones are set aside.
pub(super) async fn give_up<S: Source>(link: &mut Link<'_, S>, key: &Key, letter: &Parked) -> Result<(), Error> {
    let aside = set_changes_aside(link, letter, GIVEN_UP, |events| events.iter().map(|event| &**event).collect());
    let aside = aside.await?;
    link.remove_letter(key, letter, aside).await
}

/// The statements that set changes aside: of the refused change and the later ones that the letter has, in order, those
/// that `which` returns.
async fn set_changes_aside<S: Source>(
    link: &Link<'_, S>,
    letter: &Parked,
    reason: &'static str,
    which: impl FnOnce(&[RawDocumentBuf]) -> Vec<&RawDocument>,
) -> Result<Vec<RawDocumentBuf>, Error> {
    let (hub, id) = (link.destination_server(), letter.id.as_raw_bson_ref());
    let namespace = hub.namespace(letter.namespace);
    let events = dead_letters::events(&hub, link.destination.link(), namespace, id).await?;
    let lost = which(&events);
    let versions = lost.into_iter().map(|event| Aside { namespace, id, content: Content::Change(event), reason });
    Ok(set_aside::keep(&versions.collect::<Vec<_>>()))
}

/// The reason with which a change is set aside that the document no longer has.
const OVERWRITTEN: &str = "the hub refused the change, and the spoke's document no longer has it";

/// The reason with which a change is set aside whose document is gone.
const GIVEN_UP: &str = "the hub refused the change, and the spoke no longer has the document";

/// The document in another zone.
fn with_zone(document: &RawDocument, partition_key: &CStr, zone: &Zone) -> RawDocumentBuf {
    let mut moved = RawDocumentBuf::new();
    for (name, value) in document.iter().flatten() {
        if name == partition_key {
            moved.append(name, zone.as_str());
        } else {
            moved.append(name, value);
        }
    }
    moved
}

/// The origin of a retry: a dead letter.
struct Again<'l>(&'l Parked);

impl Origin for Again<'_> {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn is_retry(&self) -> bool {
        true
    }

    fn event(&self, _: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        // A retry says nothing new of the change: the letter keeps its event.
        let operation = if self.0.is_fresh { "insert" } else { "retry" };
        (rawdoc! { "operationType": operation, "documentKey": { "_id": self.0.id.as_raw_bson_ref() } }, None)
    }
}
