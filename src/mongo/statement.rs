//! Renders steps as statements of the server's write commands. Stored documents have exactly the intended bytes.

use bson::raw::{CStr, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::rawdoc;
use bson::spec::ElementType;

use crate::rules::delta::RawUpdate;
use crate::rules::lookup;
use crate::rules::names::Namespace;
use crate::rules::plan::{Command, CommandKind};
use crate::rules::step::{Step, Write, Zones};

/// Maximum number of statements in one command, set by the server (`maxWriteBatchSize`).
const COMMAND_STATEMENTS: usize = 100_000;

#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) database: String,
    pub(crate) command: RawDocumentBuf,
    /// Number of each statement's step, in the order of the statements.
    pub(crate) steps: Vec<usize>,
    pub(crate) kind: CommandKind,
}

/// Renders commands for the server, each of at most `most_bytes` bytes or of one statement. The iterator renders a
/// command only on request, so that memory holds one at a time: the driver copies a command several times while
/// sending.
pub(crate) fn render<'r>(
    commands: &'r [Command],
    steps: &'r [Step<'_>],
    namespaces: &'r [Namespace],
    partition_key: &'r CStr,
    most_bytes: usize,
) -> impl Iterator<Item = Ready> + 'r {
    commands.iter().flat_map(move |command| {
        let mut left = command.steps.as_slice();
        std::iter::from_fn(move || {
            if left.is_empty() {
                return None;
            }
            let mut statements = RawArrayBuf::new();
            let mut fitting = 0;
            for &number in &left[..left.len().min(COMMAND_STATEMENTS)] {
                let statement = Statement::of(&steps[number], command.kind, partition_key);
                let bytes = statements.as_bytes().len() + statement.as_raw().as_bytes().len();
                if fitting > 0 && bytes > most_bytes {
                    break;
                }
                statements.push(statement.as_raw());
                fitting += 1;
            }
            let (taken, rest) = left.split_at(fitting);
            left = rest;
            let namespace = &namespaces[usize::from(command.namespace)];
            Some(Ready::new(namespace, command.kind, taken.to_vec(), statements))
        })
    })
}

impl Ready {
    fn new(namespace: &Namespace, kind: CommandKind, steps: Vec<usize>, statements: RawArrayBuf) -> Self {
        let (name, list) = match kind {
            CommandKind::Delete => (cstr!("delete"), cstr!("deletes")),
            CommandKind::Update => (cstr!("update"), cstr!("updates")),
            CommandKind::Insert => (cstr!("insert"), cstr!("documents")),
        };
        let mut command = RawDocumentBuf::new();
        command.append(name, namespace.collection.as_str());
        command.append(list, statements);
        Self { database: namespace.database.clone(), command, steps, kind }
    }
}

/// True if an `insert` would not store the document unchanged: the server replaces an empty timestamp at the top level
/// by the present time (the manual's "Timestamps").
pub(crate) fn insert_would_change(step: &Step<'_>) -> bool {
    matches!(step.write, Write::Insert(document) if has_empty_timestamp(document))
}

/// True if the step has an effect only on a document that the destination already holds.
pub(crate) fn must_match(step: &Step<'_>) -> bool {
    matches!(step.write, Write::Update(_) | Write::Replace { upsert: false, .. })
}

enum Statement<'a> {
    Built(RawDocumentBuf),
    Document(&'a RawDocument),
}

impl<'a> Statement<'a> {
    fn of(step: &Step<'a>, kind: CommandKind, partition_key: &CStr) -> Self {
        match (kind, &step.write) {
            (CommandKind::Insert, Write::Insert(document)) => Self::Document(document),
            (CommandKind::Delete, _) => {
                let mut delete = rawdoc! { "q": filter(step, partition_key) };
                delete.append(cstr!("limit"), 1_i32);
                Self::Built(delete)
            }
            (_, write) => Self::Built(update(step, write, partition_key)),
        }
    }

    fn as_raw(&self) -> &RawDocument {
        match self {
            Self::Built(document) => document,
            Self::Document(document) => document,
        }
    }
}

fn update(step: &Step<'_>, write: &Write<'_>, partition_key: &CStr) -> RawDocumentBuf {
    let mut statement = rawdoc! { "q": filter(step, partition_key) };
    match write {
        Write::Insert(document) | Write::Replace { document, .. } => {
            // A literal protects empty timestamps and names with `$` from the server.
            if has_empty_timestamp(document) || has_operator_names(document) {
                let literal = rawdoc! { "$replaceWith": { "$literal": RawBsonRef::Document(document) } };
                statement.append(cstr!("u"), RawArrayBuf::from_iter([literal]));
            } else {
                statement.append(cstr!("u"), *document);
            }
        }
        Write::Update(delta) => match delta.to_update() {
            RawUpdate::Modifiers(modifiers) => statement.append(cstr!("u"), modifiers),
            RawUpdate::Pipeline(stages) => statement.append(cstr!("u"), stages),
        },
        Write::Delete => unreachable!("deletes are no updates"),
        Write::Reorder(_) | Write::Read(_) => unreachable!("no command holds such a step"),
    }
    if matches!(write, Write::Insert(_) | Write::Replace { upsert: true, .. }) {
        statement.append(cstr!("upsert"), true);
    }
    statement
}

/// Matches the step's document by `_id` and zone. Without `$eq`, the server would take an `_id` with `$` names for an
/// operator.
fn filter(step: &Step<'_>, partition_key: &CStr) -> RawDocumentBuf {
    let mut filter = rawdoc! { "_id": { "$eq": step.id } };
    let condition = match &step.zones {
        Zones::One(zone) => in_zone(zone),
        Zones::Any(zones) => {
            let zones: RawArrayBuf = zones.iter().copied().collect();
            rawdoc! { "$in": zones, "$not": { "$type": "array" } }
        }
        // A missing field equals null.
        Zones::OrNone(zone) => {
            let values: RawArrayBuf = [RawBsonRef::String(zone), RawBsonRef::Null].into_iter().collect();
            rawdoc! { "$in": values, "$not": { "$type": "array" } }
        }
        // An array is equal to itself, and to an array that holds it.
        Zones::Value(value @ RawBsonRef::Array(_)) => rawdoc! { "$eq": *value },
        Zones::Value(value) => rawdoc! { "$eq": *value, "$not": { "$type": "array" } },
    };
    filter.append(partition_key, condition);
    filter
}

/// The condition on the partition key of a zone's documents. Equality alone also matches an array that holds the zone's
/// name, and a document with an array as partition key belongs to no zone.
pub(super) fn in_zone(zone: &str) -> RawDocumentBuf {
    rawdoc! { "$eq": zone, "$not": { "$type": "array" } }
}

fn has_empty_timestamp(document: &RawDocument) -> bool {
    lookup::elements(document).any(|field| field.kind == ElementType::Timestamp as u8 && field.value == [0; 8])
}

/// True if a top-level name starts with `$`. The server rejects such names in a replacement.
fn has_operator_names(document: &RawDocument) -> bool {
    lookup::elements(document).any(|field| field.name.starts_with(b"$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::key::Key;
    use crate::rules::size::MOST_COMMAND_BYTES;
    use bson::{Document, Timestamp};

    fn rendered(write: Write<'_>, zones: Zones<'_>, kind: CommandKind) -> Document {
        let id = rawdoc! { "_id": { "a": 1 } };
        let id = id.get("_id").expect("valid").expect("there");
        let steps = [Step { event: 0, key: Key::new(0, id), id, zones, write, hub_edit: None }];
        let commands = [Command { namespace: 0, kind, steps: vec![0] }];
        let namespaces = [Namespace::parse("a.b").expect("valid")];
        let ready = render(&commands, &steps, &namespaces, cstr!("_pk"), MOST_COMMAND_BYTES).next().expect("one");
        Document::try_from(ready.command).expect("valid")
    }

    #[test]
    fn every_write_names_the_id_and_the_zone() {
        let delete = rendered(Write::Delete, Zones::One("DFW"), CommandKind::Delete);
        let expected = bson::doc! { "delete": "b", "deletes": [{ "q": { "_id": { "$eq": { "a": 1 } }, "_pk": { "$eq": "DFW", "$not": { "$type": "array" } } }, "limit": 1 }] };
        assert_eq!(delete, expected);
        let document = rawdoc! { "_id": { "a": 1 }, "_pk": "DFW" };
        let replace = Write::Replace { document: &document, upsert: true };
        let update = rendered(replace, Zones::Any(vec!["DFW", "HOU"]), CommandKind::Update);
        let statement = bson::doc! {
            "q": { "_id": { "$eq": { "a": 1 } }, "_pk": { "$in": ["DFW", "HOU"], "$not": { "$type": "array" } } },
            "u": { "_id": { "a": 1 }, "_pk": "DFW" },
            "upsert": true,
        };
        assert_eq!(update, bson::doc! { "update": "b", "updates": [statement] });
    }

    #[test]
    fn a_document_that_the_server_would_change_is_sent_as_a_literal() {
        let empty = Timestamp { time: 0, increment: 0 };
        let documents = [rawdoc! { "_id": 1, "at": RawBsonRef::Timestamp(empty) }, rawdoc! { "_id": 1, "$a": 1 }];
        for document in &documents {
            let update = rendered(Write::Replace { document, upsert: false }, Zones::One("DFW"), CommandKind::Update);
            let statement = update.get_array("updates").expect("there")[0].as_document().expect("a document");
            let stage = statement.get_array("u").expect("a pipeline")[0].as_document().expect("a document");
            assert!(stage.get_document("$replaceWith").expect("there").contains_key("$literal"));
            assert!(!statement.contains_key("upsert"));
        }
        let nested = rawdoc! { "_id": 1, "a": { "at": RawBsonRef::Timestamp(empty), "$b": 1 } };
        assert!(!has_empty_timestamp(&nested) && !has_operator_names(&nested));
    }

    #[test]
    fn a_command_stays_below_the_servers_limits() {
        let big = rawdoc! { "_id": 1, "x": "x".repeat(6_000_000) };
        let id = big.get("_id").expect("valid").expect("there");
        let step = Step {
            event: 0,
            key: Key::new(0, id),
            id,
            zones: Zones::One("DFW"),
            write: Write::Insert(&big),
            hub_edit: None,
        };
        let steps = vec![step; 5];
        let commands = [Command { namespace: 0, kind: CommandKind::Insert, steps: vec![0, 1, 2, 3, 4] }];
        let namespaces = [Namespace::parse("a.b").expect("valid")];
        let ready = render(&commands, &steps, &namespaces, cstr!("_pk"), MOST_COMMAND_BYTES).collect::<Vec<_>>();
        let steps: Vec<&[usize]> = ready.iter().map(|command| command.steps.as_slice()).collect();
        assert_eq!(steps, [[0, 1].as_slice(), &[2, 3], &[4]]);
    }
}
