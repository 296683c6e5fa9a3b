//! Assumptions about resume tokens, checked against a running server: tokens compare like their `_data`, and begin with
//! the cluster time.

use std::sync::Arc;

use bson::raw::RawBsonRef;
use bson::{RawDocumentBuf, doc};
use spokesync::config::Synced;
use spokesync::config::uri::Uri;
use spokesync::mongo::endpoint::Endpoint;
use spokesync::mongo::tail::{Selection, Tail, present_position};
use spokesync::rules::names::Namespace;
use spokesync::rules::position::Position;

use super::support::Site;
use super::support::site::HUB;

#[tokio::test(flavor = "multi_thread")]
async fn tokens_compare_in_the_order_of_events_and_hold_their_time() {
    let site = Site::shared(&[]).await;
    let collection = site.at(HUB);
    let client = site.client(HUB);
    let mut stream = collection.watch().batch_size(2).await.unwrap();
    // Ordinary writes, transactions of several writes with one cluster time, and replies without events.
    for round in 0..20 {
        collection.insert_one(doc! { "_id": round, "a": 1 }).await.unwrap();
        collection.update_one(doc! { "_id": round }, doc! { "$set": { "a": 2 } }).await.unwrap();
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        for number in 0..5 {
            let id = format!("{round}/{number}");
            collection.insert_one(doc! { "_id": &id }).session(&mut session).await.unwrap();
            collection.delete_one(doc! { "_id": &id }).session(&mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
    }
    let mut before: Option<Position> = None;
    let mut events = 0;
    while events < 20 * 12 {
        let event = stream.next_if_any().await.unwrap();
        let token = stream.resume_token().expect("every reply has a token");
        let token = RawDocumentBuf::try_from(&bson::serialize_to_document(&token).unwrap()).unwrap();
        let position = Position::from_token(&token).expect("the token has a position");
        if let Some(event) = event {
            events += 1;
            assert_eq!(Some(position.cluster_time()), event.cluster_time, "{token:?}");
            if let Some(before) = &before {
                assert!(*before < position && !before.has_seen(&token) && position.has_seen(before.token()));
            }
        } else if let Some(before) = &before {
            assert!(*before <= position, "{before:?} {position:?}");
        }
        before = Some(position);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_starts_at_a_change_that_it_leaves_out_brings_what_follows() {
    let site = Site::shared(&[]).await;
    let (collection, client) = (site.at(HUB), site.client(HUB));
    let sync = Synced {
        namespaces: vec![Namespace::parse(&collection.namespace().to_string()).unwrap()],
        ..Synced::default()
    };
    let endpoint = Endpoint::new("hub", Uri::parse(site.uri(HUB)).unwrap(), Arc::new(sync), 8);
    let hub = endpoint.connect().await.unwrap();
    let start = present_position(&hub).await.unwrap();
    let mut all = Tail::open(&hub, Some(&start), Selection::default()).await.unwrap();
    for events_wait in [true, false] {
        let mut session = client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        for _ in 0..3 {
            collection.insert_one(doc! { "ours": true }).session(&mut session).await.unwrap();
        }
        session.commit_transaction().await.unwrap();
        let ours = loop {
            let batch = all.next().await.unwrap();
            if let Some(last) = batch.events().last().filter(|event| event.session().is_some()) {
                break (last.position().unwrap(), last.session().unwrap());
            }
        };
        let selection = Selection { without: vec![ours.1], ..Selection::default() };
        let insert = async || collection.insert_one(doc! { "_id": format!("theirs {events_wait}") }).await.unwrap();
        if events_wait {
            insert().await;
        }
        let mut without_ours = Tail::open(&hub, Some(&ours.0), selection).await.unwrap();
        if !events_wait {
            assert!(without_ours.next().await.unwrap().is_empty());
            insert().await;
        }
        let next = loop {
            let batch = without_ours.next().await.unwrap();
            if !batch.is_empty() {
                break batch;
            }
        };
        assert_eq!(next.event(0).id().unwrap(), RawBsonRef::String(&format!("theirs {events_wait}")));
    }
}
