//! The order of fields. It follows the source's at the end of a batch: after a change by which both sides may have
//! added fields, and after an update that changed nothing, because such an update may have put a field elsewhere.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf};

use crate::link::source::Source;
use crate::mongo::destination::Open;
use crate::mongo::error::Error;
use crate::mongo::metadata::hub_edits::Edit;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::statement;
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::order;
use crate::rules::plan;
use crate::rules::step::{Step, Write, Zones};

/// Gives the documents of these steps the order of fields that they have at the source. Returns the edits of the
/// spoke's own documents. `unchanged`: the numbers of updates among which some changed nothing.
pub(super) async fn arrange<S: Source>(
    open: &mut Open<'_>,
    server: &Server,
    source: &mut S,
    (steps, unchanged): (&[Step<'_>], &[usize]),
    read_from: Timestamp,
) -> Result<Vec<Edit>, Error> {
    let mut orders = orders(source, unchanged.iter().map(|number| &steps[*number]), read_from).await?;
    for step in steps {
        if let Write::Reorder(order) = step.write {
            orders.insert(step.key.clone(), order.to_owned());
        }
    }
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    // The last step of a document says where the document is by now.
    let last: HashMap<&Key, &Step<'_>> =
        steps.iter().filter(|step| orders.contains_key(&step.key)).map(|step| (&step.key, step)).collect();
    // The read is in the transaction: no document can change before the write.
    let wanted: Wanted<'_> = last.values().map(|step| (step.key.clone(), step.id)).collect();
    let present = open.documents(&wanted).await?;
    let arranged: HashMap<&Key, RawDocumentBuf> = present
        .iter()
        .filter_map(|(key, document)| Some((key, order::arranged(document, orders.get(key)?)?)))
        .collect();
    let field = server.partition_field();
    let replaces: Vec<Step<'_>> =
        arranged.iter().filter_map(|(key, document)| replace(last.get(key)?, document, field.as_str())).collect();
    let commands = plan::sequence(&replaces);
    for ready in statement::render(&commands, &replaces, server.namespaces(), field, server.line().command_bytes()) {
        open.send(ready, &replaces).await?;
    }
    let edit = |step: Step<'_>| {
        Some(Edit { key: step.key, id: RawBson::from(step.id), fields: step.hub_edit?, is_uncertain: false })
    };
    Ok(replaces.into_iter().filter_map(edit).collect())
}

/// The documents of these steps, as the source has them.
async fn orders<'s, S: Source>(
    source: &mut S,
    steps: impl Iterator<Item = &'s Step<'s>>,
    read_from: Timestamp,
) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
    let wanted: Wanted<'_> = steps.map(|step| (step.key.clone(), step.id)).collect();
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let snapshots = source.read(&wanted, &HashSet::new(), read_from).await?;
    let documents = snapshots.into_iter().flat_map(|snapshot| snapshot.documents);
    Ok(documents.filter_map(|(key, document)| Some((key, document?))).collect())
}

/// The replace of the step's document. `None` if the document is in a zone that the step does not name: then it is
/// another one.
fn replace<'a>(step: &Step<'a>, document: &'a RawDocument, partition_key: &str) -> Option<Step<'a>> {
    let zone = lookup::value(document, partition_key).unwrap_or(RawBsonRef::Null);
    let mut named = step.zones.names().chain(step.write.new_zone(partition_key));
    named.any(|name| Some(name) == zone.as_str()).then(|| Step {
        zones: Zones::Value(zone),
        write: Write::Replace { document, upsert: false },
        hub_edit: step.hub_edit.as_ref().map(|_| Fields::order()),
        ..step.clone()
    })
}
