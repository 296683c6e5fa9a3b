//! Documents at the limits of what a server holds: large, deep, with unreadable text, and `_id`s of every shape. Each
//! is carried or becomes a dead letter, and holds up nobody.

use bson::spec::BinarySubtype;
use bson::{Binary, Document, RawDocumentBuf, Timestamp, doc, rawdoc};

use testbed::node::Options;

use super::support::bytes::{document, element, insert_raw, text};
use super::support::site::{HUB, TRIANGLE, Topology};
use super::support::{Site, eventually};

const PAIR: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &[])];

/// A document of HOU's zone with many fields below a long name, all with this value.
fn with_long_paths(id: &str, value: i32) -> Document {
    let many: Document = (0..18_000).map(|field| (format!("f{field}"), value.into())).collect();
    doc! { "_id": id, "_pk": "HOU", "p".repeat(1_000): many, "filler": "x".repeat(1_200_000) }
}

/// A document of HOU's zone that is as large as a document can be, with an `_id` of 6 kB.
fn as_large_as_can_be(id: &str) -> Document {
    const MOST: usize = 16 * 1_024 * 1_024;
    let with = |bytes: usize| {
        let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; bytes] };
        doc! { "_id": id.repeat(6_000 / id.len()), "_pk": "HOU", "bytes": bytes }
    };
    let empty = bson::serialize_to_vec(&with(0)).unwrap().len();
    with(MOST - empty)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_event_is_larger_than_a_document_can_be_holds_up_nobody() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    for name in ["HOU", HUB] {
        let collection = site.at(name);
        collection.insert_one(with_long_paths(name, 0)).await.unwrap();
        site.settle().await;
        let whole = vec![doc! { "$replaceWith": { "$literal": with_long_paths(name, 1) } }];
        collection.update_one(doc! { "_id": name }, whole).await.unwrap();
        collection.insert_one(as_large_as_can_be(name)).await.unwrap();
        collection.insert_one(doc! { "_id": format!("after it at {name}"), "_pk": "HOU" }).await.unwrap();
        for zone in ["DFW", "HOU"] {
            let canary = doc! { "_id": format!("{zone}'s at {name}"), "_pk": zone };
            site.at(HUB).insert_one(canary).await.unwrap();
        }
        site.assert_converged().await;
        let changed = site.at("DFW").find_one(doc! { "_id": name }).await.unwrap().unwrap();
        assert_eq!(changed, with_long_paths(name, 1));
    }
    assert_eq!(site.spoke_status("HOU")["dead_letters"], 0);
    assert!(site.log().contains("a change event is too large"), "{}", site.log());
}

/// `_id`s that a server stores and this program cannot read.
fn unreadable_ids() -> Vec<Vec<u8>> {
    let bad_binary = [&7_i32.to_le_bytes()[..], b"\x02", &99_i32.to_le_bytes(), b"abc"].concat();
    let bad_text = |name: &str| text(name, b"a\xff\xfe\xc0z");
    vec![
        bad_text("_id"),
        element(5, b"_id", &bad_binary),
        element(3, b"_id", document(&[bad_text("in")]).as_bytes()),
        // A symbol equals a text with the same bytes.
        element(14, b"_id", &text("", b"b\xff")[2..]),
    ]
}

/// A document with so many levels below `n`.
fn deep(id: &str, levels: usize) -> RawDocumentBuf {
    let mut inner = rawdoc! { "v": 1 };
    for _ in 1..levels {
        inner = rawdoc! { "a": inner };
    }
    rawdoc! { "_id": id, "_pk": "HOU", "u": 1, "n": inner }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_whose_id_cannot_be_read_becomes_a_dead_letter_and_holds_up_nobody() {
    let mut site = Site::shared(TRIANGLE).await;
    let zone = |zone: &str| text("_pk", zone.as_bytes());
    // Before the first start: a copy leaves them out.
    let ids = unreadable_ids();
    insert_raw(&site, "HOU", document(&[ids[0].clone(), zone("HOU"), text("x", b"before")])).await;
    site.at("HOU").insert_many((0..700).map(|id| doc! { "_id": id, "_pk": "HOU" })).await.unwrap();
    site.start().await;
    eventually("the others are copied", async || site.at("DFW").count_documents(doc! {}).await.unwrap() == 700).await;
    // Then in the stream of a spoke, in its own zone and in another one, and in the hub's.
    for (number, id) in ids.iter().enumerate().skip(1) {
        insert_raw(&site, "HOU", document(&[id.clone(), zone("HOU")])).await;
        insert_raw(&site, "BOS", document(&[id.clone(), zone("HOU")])).await;
        site.at("HOU").insert_one(doc! { "_id": format!("after {number}"), "_pk": "HOU" }).await.unwrap();
    }
    let count = doc! { "_id": { "$regex": "^after" } };
    eventually("the spoke's later changes arrive", async || {
        site.at("DFW").count_documents(count.clone()).await.unwrap() == 3
    })
    .await;
    for id in &ids {
        insert_raw(&site, HUB, document(&[id.clone(), zone("DFW")])).await;
    }
    // An update whose zone would have to be looked up is left out, and stops nobody.
    site.at(HUB).update_many(doc! { "_pk": "DFW" }, doc! { "$set": { "x": 1 } }).await.unwrap();
    for zone in ["DFW", "HOU", "BOS"] {
        site.at(HUB).insert_one(doc! { "_id": format!("after it for {zone}"), "_pk": zone }).await.unwrap();
        eventually("the hub's later changes arrive", async || {
            let canary = doc! { "_id": format!("after it for {zone}") };
            site.at(zone).find_one(canary).await.unwrap().is_some()
        })
        .await;
    }
    // HOU's uplink keeps four letters at the hub, one of them from the copy. DFW's downlink keeps four too.
    let kept = [site.own_collection(HUB, "dead_letters"), site.own_collection("DFW", "dead_letters")];
    let letters = async |at: usize| kept[at].count_documents(doc! { "reason.code": 9 }).await.unwrap();
    eventually("each is a dead letter", async || letters(0).await == 4 && letters(1).await == 4).await;
    // They stay across a new start, and no retry takes them away.
    site.stop().await;
    site.start().await;
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/dead-letters/retry").unwrap().0, 202);
    site.at("HOU").insert_one(doc! { "_id": "after a retry", "_pk": "HOU" }).await.unwrap();
    eventually("later changes arrive", async || {
        site.at("DFW").find_one(doc! { "_id": "after a retry" }).await.unwrap().is_some()
    })
    .await;
    assert_eq!((letters(0).await, letters(1).await), (4, 4));
    // A verification does not call unequal or equal what it cannot read.
    let (code, told) = site.command_code(&["verify"]);
    assert!(code == 1 && told.contains("an _id that cannot be read"), "{code}: {told}");
}

/// A document with an `_id` of so many bytes, which no change event can hold twice.
fn with_large_id(first: &str, megabytes: usize, zone: &str) -> RawDocumentBuf {
    rawdoc! { "_id": first.repeat(megabytes * 1_000_000), "_pk": zone }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_whose_id_is_too_large_for_an_event_becomes_a_dead_letter_and_holds_up_nobody() {
    let mut site = Site::shared(TRIANGLE).await;
    // Before the first start: a copy finds nothing else in the first pages, and goes on behind them.
    for first in ["b", "c", "d", "e"] {
        insert_raw(&site, "HOU", with_large_id(first, 5, "HOU")).await;
    }
    for number in 0..3 {
        let id = text(
            "_id",
            format!("a\u{0}{number}").as_bytes().iter().chain(b"\xff").copied().collect::<Vec<_>>().as_slice(),
        );
        let large = text("large", "x".repeat(7_000_000).as_bytes());
        insert_raw(&site, "HOU", document(&[id, text("_pk", b"HOU"), large])).await;
    }
    site.at("HOU").insert_one(doc! { "_id": "last of all", "_pk": "HOU" }).await.unwrap();
    site.start().await;
    eventually("the last one is copied", async || {
        site.at("DFW").find_one(doc! { "_id": "last of all" }).await.unwrap().is_some()
    })
    .await;
    let at_hub = site.own_collection(HUB, "dead_letters");
    let letters = async || at_hub.count_documents(doc! { "reason.code": 9 }).await.unwrap();
    eventually("each is a dead letter", async || letters().await == 7).await;
    // Then in the streams: one that an event can name without content, and one that no event can name.
    for (megabytes, first) in [(2, "f"), (5, "g")] {
        insert_raw(&site, "HOU", with_large_id(first, megabytes, "HOU")).await;
        insert_raw(&site, HUB, with_large_id(first, megabytes, "DFW")).await;
        site.at("HOU").delete_one(doc! { "_id": first.repeat(megabytes * 1_000_000) }).await.unwrap();
        for zone in ["DFW", "HOU", "BOS"] {
            for name in [zone, HUB] {
                let id = format!("after {megabytes} MB at {name}");
                site.at(name).insert_one(doc! { "_id": &id, "_pk": zone }).await.unwrap();
                let other = if name == HUB { zone } else { HUB };
                eventually(&format!("{zone} gets {id} at {other}"), async || {
                    site.at(other).find_one(doc! { "_id": &id, "_pk": zone }).await.unwrap().is_some()
                })
                .await;
                site.at(name).delete_one(doc! { "_id": &id }).await.unwrap();
            }
        }
    }
    let at_spoke = site.own_collection("DFW", "dead_letters");
    eventually("both are dead letters at the spoke", async || at_spoke.count_documents(doc! {}).await.unwrap() == 2)
        .await;
    assert!(!site.log().contains("link failed"), "{}", site.log());
    // Copying again finds the same, and deletes nothing.
    site.stop().await;
    site.start().await;
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/HOU/resync").unwrap().0, 202);
    site.arrives_from_houston("after all").await;
    assert_eq!(site.at("HOU").count_documents(doc! { "large": { "$exists": true } }).await.unwrap(), 3);
}

/// A site whose hub refuses documents with `u: 1`, because another document has it.
async fn refusing() -> Site {
    let mut site = Site::shared(PAIR).await;
    site.refuse_the_same_u().await;
    site.start().await;
    site.at(HUB).insert_one(doc! { "_id": "holder", "_pk": "NOBODY", "u": 1 }).await.unwrap();
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_quotes_text_that_is_no_utf8_becomes_a_dead_letter_and_heals() {
    let mut site = Site::shared(PAIR).await;
    site.refuse_the_same_u().await;
    site.start().await;
    let taken = text("u", b"a\xff\xfe\xc0z");
    insert_raw(&site, HUB, document(&[text("_id", b"holder"), text("_pk", b"NOBODY"), taken.clone()])).await;
    for number in 0..30 {
        site.at("HOU").insert_one(doc! { "_id": format!("before {number}"), "_pk": "HOU" }).await.unwrap();
    }
    insert_raw(&site, "HOU", document(&[text("_id", b"refused"), text("_pk", b"HOU"), taken])).await;
    site.arrives_from_houston("behind it").await;
    eventually("it is a dead letter", async || site.spoke_status("HOU")["dead_letters"] == 1).await;
    site.at(HUB).delete_one(doc! { "_id": "holder" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "HOU"]).0);
    eventually("the letter ends", async || site.spoke_status("HOU")["dead_letters"] == 0).await;
    site.assert_converged().await;
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_document_that_is_nested_deeply_becomes_a_dead_letter() {
    let site = refusing().await;
    for levels in [100, 170, 179] {
        insert_raw(&site, "HOU", deep(&format!("{levels}"), levels)).await;
    }
    site.arrives_from_houston("later").await;
    eventually("each is a dead letter", async || site.spoke_status("HOU")["dead_letters"] == 3).await;
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_behind_a_name_that_is_no_utf8_keeps_no_refused_document_from_becoming_a_dead_letter() {
    let site = refusing().await;
    let n = deep("", 179).get_document("n").unwrap().as_bytes().to_vec();
    let first = [text("_id", b"behind a name"), text("_pk", b"HOU"), element(0x10, b"u", &1_i32.to_le_bytes())];
    let bad = element(0x10, b"\xff", &1_i32.to_le_bytes());
    insert_raw(&site, "HOU", document(&[first.concat(), bad, element(3, b"n", &n)])).await;
    // A scope is a level as well.
    let scope = deep("", 170).get_document("n").unwrap().as_bytes().to_vec();
    let code = [&text("", b"x")[2..], &scope].concat();
    let code = [&i32::try_from(code.len() + 4).unwrap().to_le_bytes()[..], &code].concat();
    let first = [text("_id", b"in a scope"), text("_pk", b"HOU"), element(0x10, b"u", &1_i32.to_le_bytes())];
    insert_raw(&site, "HOU", document(&[first.concat(), element(0x0F, b"code", &code)])).await;
    site.arrives_from_houston("later").await;
    eventually("each is a dead letter", async || site.spoke_status("HOU")["dead_letters"] == 2).await;
    site.at(HUB).delete_one(doc! { "_id": "holder" }).await.unwrap();
    site.at("HOU").delete_one(doc! { "_id": "in a scope" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "HOU"]).0);
    eventually("they end", async || site.spoke_status("HOU")["dead_letters"] == 0).await;
    site.assert_converged().await;
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

/// `_id`s that are hard to keep in another document, or to read from a reply.
fn awkward_ids() -> Vec<Vec<u8>> {
    let levels = deep("", 175).get_document("n").unwrap().as_bytes().to_vec();
    let twice = |first: i32| {
        let named = [element(0x10, b"a", &first.to_le_bytes()), element(0x10, b"a", &2_i32.to_le_bytes())];
        document(&named).as_bytes().to_vec()
    };
    let binary = |subtype: u8| [&3_i32.to_le_bytes()[..], &[subtype], b"abc"].concat();
    vec![
        element(3, b"_id", &levels),
        element(3, b"_id", &twice(1)),
        element(3, b"_id", &twice(3)),
        element(5, b"_id", &binary(0x81)),
        element(5, b"_id", &binary(0x82)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_any_shape_is_carried_refused_healed_and_registered_like_others() {
    let mut site = refusing().await;
    let of = |id: &Vec<u8>, zone: &str, u: i32| {
        document(&[id.clone(), text("_pk", zone.as_bytes()), element(0x10, b"u", &u.to_le_bytes())])
    };
    let ids = awkward_ids();
    let count = i64::try_from(ids.len()).unwrap();
    // All have the same value of `u`, which the hub refuses.
    for id in &ids {
        insert_raw(&site, "HOU", of(id, "HOU", 1)).await;
    }
    eventually("each is a dead letter", async || site.spoke_status("HOU")["dead_letters"] == count).await;
    site.stop().await;
    site.start().await;
    // A change of a refused document waits with its letter, after a new start as well.
    site.at("HOU").update_many(doc! { "u": 1 }, doc! { "$set": { "changed": true } }).await.unwrap();
    site.arrives_from_houston("behind the changes").await;
    assert_eq!(site.at(HUB).count_documents(doc! { "changed": true }).await.unwrap(), 0);
    let drop = site.client(HUB).database(&site.at(HUB).namespace().db);
    drop.run_command(doc! { "dropIndexes": site.at(HUB).name(), "index": "u_1" }).await.unwrap();
    assert!(site.command(&["dead-letters", "retry", "HOU"]).0);
    eventually("they end", async || site.spoke_status("HOU")["dead_letters"] == 0).await;
    site.assert_converged().await;
    assert_eq!(site.at(HUB).count_documents(doc! { "changed": true }).await.unwrap(), ids.len() as u64);
    // The hub changes them, so that the spoke notes the edits; then other ones of the same shape stand in another zone.
    site.at(HUB).update_many(doc! { "changed": true }, doc! { "$set": { "by": "hub" } }).await.unwrap();
    site.assert_converged().await;
    site.at(HUB).delete_many(doc! { "changed": true }).await.unwrap();
    site.assert_converged().await;
    for id in &ids {
        insert_raw(&site, "DFW", of(id, "HOU", 2)).await;
    }
    let register = site.own_collection("DFW", "foreign");
    eventually("they are registered", async || register.count_documents(doc! {}).await.unwrap() == ids.len() as u64)
        .await;
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/DFW/resync").unwrap().0, 202);
    eventually("both links compare", async || site.log().matches("comparing everything").count() >= 2).await;
    site.ready().await;
    assert_eq!(site.at("DFW").count_documents(doc! { "u": 2 }).await.unwrap(), ids.len() as u64);
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_timestamp_behind_a_name_that_is_no_utf8_stays_empty() {
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    let id = |number: i32| element(0x10, b"_id", &number.to_le_bytes());
    let tail = [text("_pk", b"HOU"), element(0x10, b"\xff", &1_i32.to_le_bytes())].concat();
    let empty = Timestamp { time: 0, increment: 0 };
    for number in 0..3 {
        insert_raw(&site, "HOU", document(&[id(number), tail.clone()])).await;
    }
    let field = doc! { "field": "t", "input": "$$ROOT", "value": { "$literal": empty } };
    let set = vec![doc! { "$replaceWith": { "$setField": field } }];
    site.at("HOU").update_many(doc! { "_pk": "HOU" }, set.clone()).await.unwrap();
    site.assert_converged().await;
    // The same as a copy.
    site.stop().await;
    insert_raw(&site, "HOU", document(&[id(9), tail])).await;
    site.at("HOU").update_many(doc! { "_id": 9 }, set).await.unwrap();
    site.start().await;
    site.assert_converged().await;
    let empty = doc! { "t": empty };
    assert_eq!(site.at(HUB).count_documents(empty.clone()).await.unwrap(), 4);
    assert_eq!(site.at("DFW").count_documents(empty).await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_key_of_many_megabytes_stops_no_stream() {
    let mut site = Site::shared(PAIR).await;
    site.keep_pre_images(&[HUB, "HOU"]).await;
    site.start().await;
    for name in [HUB, "HOU"] {
        let key = |letter: &str| letter.repeat(9_000_000);
        let collection = site.at(name);
        collection.insert_one(doc! { "_id": name, "_pk": key("a") }).await.unwrap();
        collection.replace_one(doc! { "_id": name }, doc! { "_id": name, "_pk": key("b") }).await.unwrap();
        let set = doc! { "$set": { "_pk": key("c") } };
        collection.update_one(doc! { "_id": name }, set).await.unwrap();
        let long_id = format!("{name}{}", "\0".repeat(6_000));
        collection.insert_one(doc! { "_id": &long_id, "_pk": "d".repeat(16_760_000) }).await.unwrap();
        site.arrives_from_houston(&format!("behind {name}'s")).await;
        // Moved into a zone, they are carried.
        collection
            .update_many(doc! { "_id": { "$in": [name, &long_id] } }, doc! { "$set": { "_pk": "HOU" } })
            .await
            .unwrap();
        site.assert_converged().await;
        assert_eq!(site.at("DFW").count_documents(doc! { "_id": { "$in": [name, &long_id] } }).await.unwrap(), 2);
    }
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_that_change_together_do_not_stand_in_memory_together() {
    const DOCUMENTS: i32 = 24;
    let mut site = Site::shared(PAIR).await;
    site.start().await;
    let large = |id: i32| {
        let bytes = Binary { subtype: BinarySubtype::Generic, bytes: vec![7; 12_000_000] };
        doc! { "_id": id, "_pk": "HOU", "in": { "0": 1 }, "bytes": bytes }
    };
    for id in 0..DOCUMENTS {
        site.at("HOU").insert_one(large(id)).await.unwrap();
        if id % 4 == 3 {
            site.settle().await;
        }
    }
    // `in.0` in an event of an older server can mean two things, so the document is read.
    for name in [HUB, "HOU"] {
        site.at(name).update_many(doc! { "_pk": "HOU" }, doc! { "$set": { "in.0": name } }).await.unwrap();
        site.settle().await;
    }
    let memory = site.memory("VmHWM");
    assert!(memory < 500_000, "{memory} kB, and the documents are 290 MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_later_changes_of_a_refused_document_fit_into_its_letter() {
    let site = refusing().await;
    site.at("HOU").insert_one(doc! { "_id": "refused", "_pk": "HOU", "u": 1 }).await.unwrap();
    eventually("it is a dead letter", async || site.spoke_status("HOU")["dead_letters"] == 1).await;
    site.in_one_batch(async || {
        for value in 0..2_000 {
            let set = doc! { "$set": { "text": format!("{value} {}", "x".repeat(15_000)) } };
            site.at("HOU").update_one(doc! { "_id": "refused" }, set).await.unwrap();
        }
    })
    .await;
    site.arrives_from_houston("behind them").await;
    let letters = site.own_collection(HUB, "dead_letters");
    let letter: Document = letters.find_one(doc! { "_id.document": "refused" }).await.unwrap().unwrap();
    assert_eq!(letter.get_array("later_events").unwrap().len(), 20);
    assert_eq!(letter.get_i64("later_changes").unwrap(), 2_000);
    assert!(!site.log().contains("link failed"), "{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_although_the_search_for_a_large_id_fails() {
    const MAX_TIME_EXPIRED: i32 = 50;
    let mut site = Site::own(PAIR, Options::default()).await;
    site.start().await;
    site.arrives_from_houston("before").await;
    let data = doc! {
        "failCommands": ["find"], "namespace": site.at("HOU").namespace().to_string(), "errorCode": MAX_TIME_EXPIRED,
    };
    site.nodes["HOU"].fail(1, data).await.unwrap();
    insert_raw(&site, "HOU", with_large_id("x", 5, "HOU")).await;
    site.arrives_from_houston("behind it").await;
    assert!(site.log().contains("documents with a large _id are not found"), "{}", site.log());
}
