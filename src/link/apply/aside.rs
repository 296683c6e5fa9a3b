//! The traces of a batch: versions that [inference](crate::rules::inference) replaces or removes, and changes that the
//! hub has overtaken. Both are set aside in the batch's transaction.

use std::collections::{HashMap, HashSet};

use bson::raw::RawDocumentBuf;

use super::attempt::Brought;
use super::work::Origin;
use crate::mongo::metadata::set_aside::{self, Aside, Content};
use crate::mongo::server::Server;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::Zone;
use crate::rules::step::{Reads, Step, Zones};

/// The reason with which an overtaken change is set aside.
const OVERTAKEN: &str = "the hub had moved, deleted or changed the document when the change came";

/// The commands that set aside what these steps replace or remove by inference. `present` holds the documents at the
/// destination, and `inference` tells by which inference a document is written.
pub(super) fn replaced(
    server: &Server,
    steps: &[Step<'_>],
    present: &HashMap<Key, RawDocumentBuf>,
    inference: impl Fn(&Key) -> Option<Inference>,
) -> Vec<RawDocumentBuf> {
    let field = server.partition_field().as_str();
    let mut versions = Vec::new();
    for step in steps {
        let Some((inference, document)) = inference(&step.key).zip(present.get(&step.key)) else { continue };
        // The step's filter spares a document of another zone.
        let is_in_reach = match (&step.zones, lookup::value(document, field)) {
            (Zones::Value(value), zone) => zone.map_or_else(|| value.as_null().is_some(), |zone| zone == *value),
            (zones, zone) => {
                zone.and_then(|zone| zone.as_str()).is_some_and(|zone| zones.names().any(|one| one == zone))
            }
        };
        if let Some(reason) = inference.reason(&step.write, document).filter(|_| is_in_reach) {
            let namespace = server.namespace(step.key.namespace());
            versions.push(Aside { namespace, id: step.id, content: Content::Document(document), reason });
        }
    }
    set_aside::keep(&versions)
}

/// The documents of an uplink's steps that the spoke no longer has in the link's zones: the downlink has taken them
/// away, because the hub had moved or deleted them. A document that the applications themselves have deleted does not
/// count.
pub(super) fn gone(
    steps: &[Step<'_>],
    reads: &Reads,
    brought: &Brought,
    zones: &[Zone],
    partition_key: &str,
) -> HashSet<Key> {
    // Most batches read nothing.
    if reads.documents.is_empty() && brought.reads.documents.is_empty() {
        return HashSet::new();
    }
    let deleted: HashSet<&Key> = steps.iter().filter(|step| step.removes()).map(|step| &step.key).collect();
    let is_held = |document: &RawDocumentBuf| {
        lookup::text(document, partition_key).is_some_and(|zone| zones.iter().any(|held| held.as_str() == zone))
    };
    let is_gone = |key: &Key| {
        // A document read before the transaction may move with the batch; one that was missing at the hub has moved.
        let is_missing = reads.documents.get(key).is_some_and(Option::is_none);
        let brought = brought.reads.documents.get(key);
        is_missing || brought.is_some_and(|document| !document.as_ref().is_some_and(is_held))
    };
    let keys = steps.iter().map(|step| &step.key);
    keys.filter(|key| !deleted.contains(key) && is_gone(key)).cloned().collect()
}

/// The commands that set aside the changes of these steps, which the hub has overtaken.
pub(super) fn overtaken<'s, 'a: 's>(
    server: &Server,
    origin: &dyn Origin,
    steps: impl Iterator<Item = &'s Step<'a>>,
) -> Vec<RawDocumentBuf> {
    let changes: Vec<_> = steps.map(|step| (step, origin.event(step.event).0)).collect();
    let versions = changes.iter().map(|(step, event)| Aside {
        namespace: server.namespace(step.key.namespace()),
        id: step.id,
        content: Content::Change(event),
        reason: OVERTAKEN,
    });
    set_aside::keep(&versions.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::attempt::tests::{key, snapshot, step};
    use super::*;
    use crate::rules::step::Write;
    use bson::rawdoc;

    fn read(documents: Vec<(i32, Option<RawDocumentBuf>)>) -> Brought {
        let mut brought = Brought::default();
        brought.add(snapshot(documents));
        brought
    }

    #[test]
    fn a_document_is_gone_if_the_spoke_lacks_it_and_no_application_has_deleted_it() {
        let update = || Write::Update(crate::rules::delta::Delta::default());
        let (own, other) = (rawdoc! { "_pk": "DFW" }, rawdoc! { "_pk": "HOU" });
        let steps =
            [step(1, update()), step(2, update()), step(3, update()), step(4, update()), step(4, Write::Delete)];
        let zones = [Zone::new("DFW")];
        let missing = read(vec![(1, Some(own.clone())), (2, Some(other.clone())), (3, None), (4, None)]);
        let gone_of = |reads: &Reads, brought: &Brought| gone(&steps, reads, brought, &zones, "_pk");
        assert_eq!(gone_of(&Reads::default(), &missing), HashSet::from([key(2), key(3)]));
        let before = read(vec![(1, Some(own)), (2, Some(other)), (3, None), (4, None)]);
        assert_eq!(gone_of(&before.reads, &Brought::default()), HashSet::from([key(3)]), "2 moves with the batch");
    }
}
