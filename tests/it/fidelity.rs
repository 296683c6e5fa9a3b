//! Every document arrives unchanged: all BSON types, names, orders and sizes.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use mongodb::Collection;

use super::support::Site;
use super::support::site::{HUB, TRIANGLE};

/// Values of every BSON type, including edge cases.
fn every_type() -> Vec<Bson> {
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let scope = doc! { "x": 1, "$y": { "z.z": [] } };
    vec![
        Bson::Double(1.5),
        Bson::Double(-0.0),
        Bson::Double(f64::NAN),
        Bson::Double(f64::from_bits(0x7FF8_0000_0000_0001)),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Double(f64::MIN_POSITIVE),
        Bson::String(String::new()),
        Bson::String("späte Züge\0 und 🚂".to_owned()),
        Bson::Document(doc! {}),
        Bson::Document(doc! { "b": 1, "a": { "$c": 2, "": 3, "d.e": 4 } }),
        binary(BinarySubtype::Generic, &[]),
        binary(BinarySubtype::Function, &[1]),
        binary(BinarySubtype::BinaryOld, &[1, 2, 3]),
        binary(BinarySubtype::UuidOld, &[7; 16]),
        binary(BinarySubtype::Uuid, &[8; 16]),
        binary(BinarySubtype::Md5, &[9; 16]),
        binary(BinarySubtype::UserDefined(0x80), &[0xFF, 0]),
        Bson::ObjectId(ObjectId::from_bytes([1; 12])),
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::DateTime(DateTime::from_millis(0)),
        Bson::DateTime(DateTime::from_millis(-1)),
        Bson::DateTime(DateTime::MAX),
        Bson::Null,
        Bson::JavaScriptCode("function () {}".to_owned()),
        Bson::Symbol("symbol".to_owned()),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "x".to_owned(), scope }),
        Bson::Int32(1),
        Bson::Int32(i32::MIN),
        Bson::Timestamp(Timestamp { time: 1, increment: 0 }),
        Bson::Timestamp(Timestamp { time: u32::MAX, increment: u32::MAX }),
        Bson::Int64(1 << 40),
        Bson::Int64(i64::MIN),
        Bson::Decimal128("0.10".parse::<Decimal128>().unwrap()),
        Bson::Decimal128("-0E+6000".parse::<Decimal128>().unwrap()),
        Bson::Decimal128("NaN".parse::<Decimal128>().unwrap()),
        Bson::MinKey,
        Bson::MaxKey,
    ]
}

/// Values that cannot be an `_id`.
fn no_ids() -> Vec<Bson> {
    vec![
        Bson::Array(vec![Bson::Int32(1), Bson::Null, Bson::Array(vec![])]),
        Bson::RegularExpression(Regex { pattern: "^a.*".try_into().unwrap(), options: "im".try_into().unwrap() }),
        Bson::Undefined,
        Bson::Timestamp(Timestamp { time: 0, increment: 0 }),
    ]
}

async fn site() -> Site {
    let mut site = Site::shared(TRIANGLE).await;
    site.start().await;
    site
}

/// Stores a document. Returns the number of stored documents: 0 if the server refuses the `_id` (error 52) or has a
/// document with an equal `_id` (error 11000).
async fn store(collection: &Collection<Document>, document: Document) -> usize {
    use mongodb::error::{ErrorKind, WriteFailure};
    let Err(error) = collection.insert_one(document).await else { return 1 };
    let ErrorKind::Write(WriteFailure::WriteError(refused)) = error.kind.as_ref() else { panic!("{error:?}") };
    assert!([52, 11000].contains(&refused.code), "{error:?}");
    0
}

/// Waits until all sides are equal, and returns the number of documents of DFW.
async fn agreed(site: &Site) -> usize {
    site.assert_converged().await;
    site.zone("HOU", 0, "DFW").await.len()
}

async fn pipeline(collection: &Collection<Document>, id: impl Into<Bson>, stages: Vec<Document>) {
    let done = collection.update_one(doc! { "_id": id.into() }, stages).await.unwrap();
    assert_eq!(done.matched_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bson_type_passes_as_a_value_and_as_an_id() {
    let site = site().await;
    let mut stored = 0;
    for (place, other) in [("DFW", "HOU"), (HUB, "hub")] {
        let collection = site.at(place);
        for (number, value) in (0i64..).zip(every_type()) {
            let id = doc! { "of": other, "id": value.clone(), "number": number };
            stored += store(&collection, doc! { "_id": id, "_pk": "DFW", "value": value.clone() }).await;
            if place == "DFW" {
                let document = doc! { "_id": value.clone(), "_pk": "DFW", "value": value, "number": number };
                stored += store(&collection, document).await;
            }
        }
        for (number, value) in no_ids().into_iter().enumerate() {
            let document = doc! { "_id": format!("{place} {number}"), "_pk": "DFW", "list": [value.clone()], "in": { "a": value } };
            stored += store(&collection, document).await;
        }
    }
    assert_eq!(agreed(&site).await, stored);
    assert!(stored > 3 * every_type().len() - 8, "{stored}");
    // Every value is also the new value of a field of an existing document, and travels as a delta.
    for (place, id) in [("DFW", "deltas"), (HUB, "hub deltas")] {
        let collection = site.at(place);
        collection.insert_one(doc! { "_id": id, "_pk": "DFW", "value": "old" }).await.unwrap();
        for value in every_type().into_iter().chain(no_ids()) {
            collection
                .update_one(doc! { "_id": id }, doc! { "$set": { "value": value.clone(), "in": { "a": value } } })
                .await
                .unwrap();
        }
        agreed(&site).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_timestamp_at_the_top_stays_empty() {
    let site = site().await;
    let empty = Bson::Timestamp(Timestamp { time: 0, increment: 0 });
    for (place, id) in [("DFW", 1), (HUB, 2)] {
        let collection = site.at(place);
        collection.insert_one(doc! { "_id": id, "_pk": "DFW" }).await.unwrap();
        pipeline(&collection, id, vec![doc! { "$set": { "at": { "$literal": empty.clone() } } }]).await;
        agreed(&site).await;
        // The document is large, so that the change is sent as a delta.
        let large = "x".repeat(1_000);
        collection.replace_one(doc! { "_id": id }, doc! { "_pk": "DFW", "large": large }).await.unwrap();
        pipeline(&collection, id, vec![doc! { "$set": { "at": { "$literal": empty.clone() } } }]).await;
        agreed(&site).await;
        let found = site.at("HOU").find_one(doc! { "_id": id }).await.unwrap().unwrap();
        assert_eq!(found.get("at"), Some(&empty));
    }
    // Documents from before the program's start.
    let mut site = site;
    site.stop().await;
    site.at("DFW").insert_one(doc! { "_id": 3, "_pk": "DFW" }).await.unwrap();
    pipeline(&site.at("DFW"), 3, vec![doc! { "$set": { "at": { "$literal": empty } } }]).await;
    site.start().await;
    assert_eq!(agreed(&site).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn field_names_with_dots_or_dollars_and_empty_field_names_pass() {
    let site = site().await;
    for (place, id) in [("DFW", "spoke"), (HUB, "hub")] {
        let collection = site.at(place);
        let odd = doc! { "_id": id, "$first": 1, "a.b": { "c.d": 1, "$e": [{ "$f": 1 }] }, "": { "": 1 }, "10": 1, "9": 2, "_pk": "DFW" };
        collection.insert_one(odd).await.unwrap();
        agreed(&site).await;
        let set = |field: &str, value: Bson| {
            let field = doc! { "$literal": field };
            vec![
                doc! { "$replaceWith": { "$setField": { "field": field, "input": "$$ROOT", "value": { "$literal": value } } } },
            ]
        };
        for (field, value) in [
            ("a.b", Bson::Int32(2)),
            ("", Bson::Int32(3)),
            ("$first", Bson::Null),
            ("x.y.", Bson::from(doc! { "$": 1 })),
        ] {
            pipeline(&collection, id, set(field, value)).await;
            agreed(&site).await;
        }
        pipeline(
            &collection,
            id,
            vec![doc! { "$replaceWith": { "$unsetField": { "field": "a.b", "input": "$$ROOT" } } }],
        )
        .await;
        let first = doc! { "$replaceWith": { "$literal": { "$now first": 1, "_id": id, "_pk": "DFW", "b": 1 } } };
        pipeline(&collection, id, vec![first]).await;
        assert!(agreed(&site).await > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_are_cut_extended_and_pulled() {
    let site = site().await;
    for (place, id) in [("DFW", 1), (HUB, 2)] {
        let collection = site.at(place);
        let list: Vec<i32> = (0..200).collect();
        collection
            .insert_one(doc! { "_id": id, "_pk": "DFW", "list": list, "in": { "list": [1, 2, 3] } })
            .await
            .unwrap();
        let update = async |update: Document| {
            collection.update_one(doc! { "_id": id }, update).await.unwrap();
            agreed(&site).await;
        };
        update(doc! { "$push": { "list": { "$each": [], "$slice": 100 } } }).await;
        update(doc! { "$push": { "list": { "$each": [7, 8], "$position": 3 } } }).await;
        update(doc! { "$pull": { "list": { "$gte": 50 } } }).await;
        update(doc! { "$pop": { "list": 1 }, "$set": { "in.list.1": 9 } }).await;
        update(doc! { "$set": { "list.60": "far" } }).await;
        pipeline(
            &collection,
            id,
            vec![doc! { "$set": { "list": { "$slice": ["$list", 10] }, "new": 1, "another": 2 } }],
        )
        .await;
        update(doc! { "$push": { "list": { "$each": [], "$slice": 0 } } }).await;
        let found = site.at("HOU").find_one(doc! { "_id": id }).await.unwrap().unwrap();
        assert!(found.get_array("list").unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_fields_is_kept() {
    let site = site().await;
    for (place, id) in [("DFW", 1), (HUB, 2)] {
        let collection = site.at(place);
        collection.insert_one(doc! { "_id": id, "z": "x".repeat(500), "_pk": "DFW", "a": 1 }).await.unwrap();
        agreed(&site).await;
        pipeline(
            &collection,
            id,
            vec![doc! { "$set": { "y": 1 } }, doc! { "$set": { "b": 2, "10": 3, "9": 4, "A": 5 } }],
        )
        .await;
        agreed(&site).await;
        collection
            .update_one(doc! { "_id": id }, doc! { "$set": { "d": 1, "c": 2, "20": 3, "3": 4 }, "$unset": { "a": 1 } })
            .await
            .unwrap();
        agreed(&site).await;
        collection.update_one(doc! { "_id": id }, doc! { "$set": { "a": 7 }, "$rename": { "b": "bb" } }).await.unwrap();
        agreed(&site).await;
        collection.replace_one(doc! { "_id": id }, doc! { "b": 1, "_pk": "DFW", "a": 2 }).await.unwrap();
        agreed(&site).await;
        let found = site.at("HOU").find_one(doc! { "_id": id }).await.unwrap().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["_id", "b", "_pk", "a"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_only_changes_the_order_of_fields_arrives() {
    let site = site().await;
    for (place, id) in [("DFW", 1), (HUB, 2)] {
        let collection = site.at(place);
        let many: Document = (0..300).map(|number| (format!("f{number}"), Bson::from(number))).collect();
        let mut document = doc! { "_id": id, "_pk": "DFW", "a": 1, "n": { "x": 1, "fill": "x".repeat(500), "y": 2 } };
        document.extend(many);
        collection.insert_one(&document).await.unwrap();
        agreed(&site).await;
        // The event of such an update names only the fields that moved, with the values that they had.
        let last = |names: &[&str]| {
            let others = names.iter().fold(Bson::from("$$ROOT"), |input, name| {
                doc! { "$unsetField": { "field": *name, "input": input } }.into()
            });
            let moved: Document = names.iter().map(|name| ((*name).to_owned(), format!("${name}").into())).collect();
            vec![doc! { "$replaceWith": { "$mergeObjects": [others, moved] } }]
        };
        for names in [&["f0"][..], &["f7", "f3", "f5"], &["n", "_pk", "a"]] {
            pipeline(&collection, id, last(names)).await;
            agreed(&site).await;
            let found = site.at("HOU").find_one(doc! { "_id": id }).await.unwrap().unwrap();
            assert_eq!(found.keys().skip(found.len() - names.len()).collect::<Vec<_>>(), names);
        }
        let turned = doc! { "n": { "$literal": { "fill": "x".repeat(500), "y": 2, "x": 1 } } };
        pipeline(&collection, id, vec![doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", turned] } }]).await;
        agreed(&site).await;
        let found = site.at("HOU").find_one(doc! { "_id": id }).await.unwrap().unwrap();
        assert_eq!(found.get_document("n").unwrap().keys().last().unwrap(), "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_as_large_as_can_be_passes() {
    const LARGEST: usize = 16 * 1024 * 1024;
    let site = site().await;
    for (place, id) in [("DFW", 1), (HUB, 2)] {
        let collection = site.at(place);
        let filled = |letter: &str, more: Document| {
            let mut document = doc! { "_id": id, "_pk": "DFW", "fill": "" };
            document.extend(more);
            let free = LARGEST - bson::serialize_to_vec(&document).unwrap().len();
            document.insert("fill", letter.repeat(free));
            document
        };
        collection.insert_one(filled("a", doc! { "n": { "m": 1 } })).await.unwrap();
        agreed(&site).await;
        collection.replace_one(doc! { "_id": id }, filled("b", doc! { "n": { "m": 1 } })).await.unwrap();
        agreed(&site).await;
        collection.update_one(doc! { "_id": id }, doc! { "$set": { "n": { "m": 2 } } }).await.unwrap();
        agreed(&site).await;
        collection.update_one(doc! { "_id": id }, doc! { "$set": { "n.m": 3 } }).await.unwrap();
        agreed(&site).await;
        let length = filled("c", doc! { "n": { "m": 1 } }).get_str("fill").unwrap().len();
        collection.update_one(doc! { "_id": id }, doc! { "$set": { "fill": "c".repeat(length) } }).await.unwrap();
        agreed(&site).await;
        collection.delete_one(doc! { "_id": id }).await.unwrap();
        assert_eq!(agreed(&site).await, 0);
    }
}
