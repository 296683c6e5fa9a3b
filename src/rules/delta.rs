//! The change in an update event, and the update statement that produces the same bytes at a destination.
//!
//! An `updateDescription` names fields by dotted paths. `a.0` may be the first element of the array `a`, the field `0`
//! of the document `a`, or a field with a dot in the name. A dotted path is ambiguous unless the server disambiguates
//! paths (`disambiguatedPaths`, MongoDB 6.1 and later). No update statement can name a field with a leading `$` or an
//! empty name. A change without an exact statement is [`Update::Whole`]: the document is then read at the source.

use bson::raw::{CStr, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};

use super::fields::Fields;
use super::lookup;
use super::reply::EventRef;

/// The change of an update event.
#[derive(Clone, Debug)]
pub(crate) enum Update<'a> {
    /// An exact update statement exists.
    Delta(Delta<'a>),
    /// No exact update statement exists: the destination needs the whole document.
    Whole,
}

/// Changed fields, with unambiguous paths that an update statement can name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta<'a> {
    set: Vec<(Path<'a>, RawBsonRef<'a>)>,
    unset: Vec<Path<'a>>,
    truncated: Vec<(Path<'a>, i32)>,
}

/// A field's path as written in the event.
#[derive(Clone, Debug)]
struct Path<'a> {
    text: &'a CStr,
    /// Names from the outermost field inwards. An array index counts as a name.
    names: Vec<&'a str>,
    /// True if a name is a number: the server sorts numeric names by value.
    numeric: bool,
}

impl Delta<'_> {
    /// Approximate size of the new values, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        const NUMBER: usize = 8;
        let bytes = |value: &RawBsonRef<'_>| match value {
            RawBsonRef::String(text) => text.len(),
            RawBsonRef::Document(document) => document.as_bytes().len(),
            RawBsonRef::Array(array) => array.as_bytes().len(),
            RawBsonRef::Binary(binary) => binary.bytes.len(),
            _ => NUMBER,
        };
        self.set.iter().map(|(_, value)| bytes(value)).sum()
    }
}

impl<'a> Update<'a> {
    /// The change of an update event; `None` for an event of another type. An event that came without its content says
    /// only that something has changed.
    pub(crate) fn of(event: EventRef<'a>, precise: bool) -> Option<Self> {
        let description = event.update_description()?;
        Some(if event.is_bare() { Self::Whole } else { Self::read(description, precise) })
    }

    /// Reads an `updateDescription`. `precise`: the stream was opened with `showExpandedEvents` on MongoDB 6.1 or
    /// later, and the server sends `disambiguatedPaths` for every path except plain nested fields.
    fn read(description: &'a RawDocument, precise: bool) -> Self {
        match Delta::read(description, precise) {
            Some(delta) if delta.fits_modifiers() || delta.fits_pipeline() => Self::Delta(delta),
            _ => Self::Whole,
        }
    }
}

/// Effect of an update on one top-level field, the partition key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FieldChange<'a> {
    /// The field is untouched.
    None,
    /// The field has a new value.
    Set(RawBsonRef<'a>),
    /// The field is removed.
    Unset,
}

/// Reads the effect on one top-level field from an `updateDescription`.
pub(crate) fn field_change<'a>(description: &'a RawDocument, field: &str) -> FieldChange<'a> {
    let set = description.get_document("updatedFields").ok().and_then(|fields| lookup::value(fields, field));
    if let Some(value) = set {
        return FieldChange::Set(value);
    }
    let removed = description.get_array("removedFields").ok();
    let is_field = |name: bson::error::Result<RawBsonRef<'_>>| name.is_ok_and(|name| name.as_str() == Some(field));
    if removed.is_some_and(|names| names.into_iter().any(is_field)) { FieldChange::Unset } else { FieldChange::None }
}

impl<'a> Delta<'a> {
    fn read(description: &'a RawDocument, precise: bool) -> Option<Self> {
        let listed = description.get_document("disambiguatedPaths").ok();
        let path = |text| Path::read(text, listed, precise);
        let mut delta = Self::default();
        for element in description {
            match element.ok()? {
                (part, RawBsonRef::Document(fields)) if part == "updatedFields" => {
                    for field in fields {
                        let (name, value) = field.ok()?;
                        delta.set.push((path(name.as_str())?, value));
                    }
                }
                (part, RawBsonRef::Array(names)) if part == "removedFields" => {
                    for name in names {
                        delta.unset.push(path(name.ok()?.as_str()?)?);
                    }
                }
                (part, RawBsonRef::Array(arrays)) if part == "truncatedArrays" => {
                    for array in arrays {
                        let array = array.ok()?.as_document()?;
                        let size = array.get_i32("newSize").ok()?;
                        delta.truncated.push((path(array.get_str("field").ok()?)?, size));
                    }
                }
                _ => {}
            }
        }
        Some(delta)
    }

    /// Fields touched by the change, for the rule about concurrent edits.
    pub(crate) fn fields(&self) -> Fields {
        let set = self.set.iter().map(|(path, _)| path);
        let truncated = self.truncated.iter().map(|(path, _)| path);
        let paths = set.chain(&self.unset).chain(truncated);
        Fields::Some { names: paths.map(|path| path.names[0].into()).collect(), may_add: !self.set.is_empty() }
    }

    /// The new value of this top-level field, if the change sets the field.
    pub(crate) fn value(&self, field: &str) -> Option<RawBsonRef<'a>> {
        self.set.iter().find(|(path, _)| path.text.as_str() == field).map(|(_, value)| *value)
    }

    /// The `u` of an update statement: modifiers if they are exact, else a pipeline.
    pub(crate) fn to_update(&self) -> RawUpdate {
        if self.fits_modifiers() {
            RawUpdate::Modifiers(self.modifiers())
        } else {
            RawUpdate::Pipeline(self.pipeline())
        }
    }

    /// `$set` adds fields in the order of their names, with numbers by value ("Update Operators Behavior" in the
    /// manual), not in the order of the source. Modifiers are therefore exact only for names already in order.
    fn fits_modifiers(&self) -> bool {
        self.truncated.is_empty()
            && self.set.is_sorted_by(|(left, _), (right, _)| left.names < right.names)
            && !self.set.iter().any(|(path, _)| path.numeric)
    }

    /// In a pipeline a nested path reaches into arrays, so only top-level fields keep their meaning.
    fn fits_pipeline(&self) -> bool {
        let top_level = |path: &Path<'_>| path.names.len() == 1;
        self.set.iter().all(|(path, _)| top_level(path))
            && self.unset.iter().all(top_level)
            && self.truncated.iter().all(|(path, _)| top_level(path))
    }

    fn modifiers(&self) -> RawDocumentBuf {
        let mut update = RawDocumentBuf::new();
        if !self.set.is_empty() {
            let set: RawDocumentBuf = self.set.iter().map(|(path, value)| (path.text, *value)).collect();
            update.append(cstr!("$set"), set);
        }
        if !self.unset.is_empty() {
            let unset: RawDocumentBuf = self.unset.iter().map(|path| (path.text, "")).collect();
            update.append(cstr!("$unset"), unset);
        }
        update
    }

    fn pipeline(&self) -> RawArrayBuf {
        let mut set = RawDocumentBuf::new();
        for (path, value) in &self.set {
            set.append(path.text, bson::rawdoc! { "$literal": *value });
        }
        for (path, size) in &self.truncated {
            let array = bson::rawdoc! { "$getField": { "$literal": path.text.as_str() } };
            set.append(path.text, bson::rawdoc! { "$slice": [array, *size] });
        }
        let mut stages = RawArrayBuf::new();
        if !self.unset.is_empty() {
            let names: RawArrayBuf = self.unset.iter().map(|path| path.text.as_str()).collect();
            stages.push(bson::rawdoc! { "$unset": names });
        }
        if !set.is_empty() {
            stages.push(bson::rawdoc! { "$set": set });
        }
        stages
    }
}

impl<'a> Path<'a> {
    /// Reads a path. `None` if the path is ambiguous, or no update statement can name the field.
    fn read(text: &'a str, listed: Option<&'a RawDocument>, precise: bool) -> Option<Self> {
        let mut path = Self { text: text.try_into().ok()?, names: Vec::new(), numeric: false };
        let mut numeric = |name: &str| path.numeric |= name.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(RawBsonRef::Array(parts)) = listed.and_then(|paths| paths.get(text).ok().flatten()) {
            for part in parts {
                match part.ok()? {
                    RawBsonRef::String(name) => {
                        numeric(name);
                        path.names.push(name);
                    }
                    RawBsonRef::Int32(_) | RawBsonRef::Int64(_) => path.names.push("index"),
                    _ => return None,
                }
            }
        } else if precise || !text.contains('.') {
            path.names.extend(text.split('.').inspect(|name| numeric(name)));
        } else {
            return None;
        }
        let unclear = |name: &&str| name.is_empty() || name.starts_with('$') || name.contains('.');
        if path.names.is_empty() || path.names.iter().any(unclear) { None } else { Some(path) }
    }
}

/// The `u` of an update statement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RawUpdate {
    /// `{$set: …, $unset: …}`.
    Modifiers(RawDocumentBuf),
    /// `[{$unset: …}, {$set: …}]`.
    Pipeline(RawArrayBuf),
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawBson, rawbson, rawdoc};

    fn description(set: RawDocumentBuf, unset: RawBson, truncated: RawBson) -> RawDocumentBuf {
        rawdoc! { "updatedFields": set, "removedFields": unset, "truncatedArrays": truncated }
    }

    fn delta(description: &RawDocumentBuf, precise: bool) -> Delta<'_> {
        match Update::read(description, precise) {
            Update::Delta(delta) => delta,
            Update::Whole => panic!("{description:?} should be a delta"),
        }
    }

    #[test]
    fn plain_fields_become_modifiers() {
        let description = description(rawdoc! { "a": 1, "b": { "c": 2 } }, rawbson!(["d"]), rawbson!([]));
        let update = delta(&description, false).to_update();
        assert_eq!(
            update,
            RawUpdate::Modifiers(rawdoc! { "$set": { "a": 1, "b": { "c": 2 } }, "$unset": { "d": "" } })
        );
    }

    #[test]
    fn fields_added_out_of_name_order_become_a_pipeline() {
        for set in [rawdoc! { "b": 1, "a": 2 }, rawdoc! { "10": 1 }] {
            let description = description(set, rawbson!([]), rawbson!([]));
            assert!(matches!(delta(&description, false).to_update(), RawUpdate::Pipeline(_)));
        }
    }

    #[test]
    fn a_cut_array_becomes_a_slice() {
        let description = description(rawdoc! {}, rawbson!([]), rawbson!([{ "field": "a", "newSize": 2 }]));
        let RawUpdate::Pipeline(stages) = delta(&description, false).to_update() else { panic!("a pipeline") };
        let expected = rawdoc! { "$set": { "a": { "$slice": [{ "$getField": { "$literal": "a" } }, 2] } } };
        assert_eq!(stages.get(0).expect("valid"), Some(RawBsonRef::Document(&expected)));
    }

    #[test]
    fn a_path_no_update_can_name_brings_the_whole_document() {
        let ambiguous = [
            description(rawdoc! { "a.b": 1 }, rawbson!([]), rawbson!([])),
            description(rawdoc! { "": 1 }, rawbson!([]), rawbson!([])),
            description(rawdoc! { "$a": 1 }, rawbson!([]), rawbson!([])),
            description(rawdoc! {}, rawbson!(["a.0"]), rawbson!([])),
            description(rawdoc! {}, rawbson!([]), rawbson!([{ "field": "a.b", "newSize": 2 }])),
        ];
        for description in &ambiguous {
            assert!(matches!(Update::read(description, false), Update::Whole), "{description:?}");
        }
    }

    #[test]
    fn disambiguated_nested_paths_become_deltas() {
        let mut nested = description(rawdoc! { "a.b": 1, "c.0": 2 }, rawbson!(["d.e"]), rawbson!([]));
        nested.append(cstr!("disambiguatedPaths"), rawdoc! { "c.0": ["c", 0] });
        let update = delta(&nested, true).to_update();
        assert_eq!(update, RawUpdate::Modifiers(rawdoc! { "$set": { "a.b": 1, "c.0": 2 }, "$unset": { "d.e": "" } }));
        let names = ["a", "c", "d"].map(Box::from).into();
        assert_eq!(delta(&nested, true).fields(), Fields::Some { names, may_add: true });
    }

    #[test]
    fn a_field_with_a_dot_in_its_name_brings_the_whole_document() {
        let mut dotted = description(rawdoc! { "a.b": 1 }, rawbson!([]), rawbson!([]));
        dotted.append(cstr!("disambiguatedPaths"), rawdoc! { "a.b": ["a.b"] });
        assert!(matches!(Update::read(&dotted, true), Update::Whole));
        // Nested fields out of name order fit neither modifiers nor a pipeline.
        let unsorted = description(rawdoc! { "a.z": 1, "a.b": 1 }, rawbson!([]), rawbson!([]));
        assert!(matches!(Update::read(&unsorted, true), Update::Whole));
    }

    #[test]
    fn the_partition_key_is_found_among_the_changes() {
        let moved = description(rawdoc! { "_pk": "HOU" }, rawbson!([]), rawbson!([]));
        assert_eq!(field_change(&moved, "_pk"), FieldChange::Set(RawBsonRef::String("HOU")));
        let lost = description(rawdoc! { "a": 1 }, rawbson!(["_pk"]), rawbson!([]));
        assert_eq!(field_change(&lost, "_pk"), FieldChange::Unset);
        let other = description(rawdoc! { "_pk.a": 1 }, rawbson!(["a._pk"]), rawbson!([]));
        assert_eq!(field_change(&other, "_pk"), FieldChange::None);
    }
}
