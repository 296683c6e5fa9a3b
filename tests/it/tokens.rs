//! What is assumed of resume tokens, against a running server: they compare as their `_data` does, and begin with the
//! cluster time.

use bson::{RawDocumentBuf, doc};
use spokesync::sync::position::Position;

use super::support::Site;
use super::support::site::HUB;

#[tokio::test(flavor = "multi_thread")]
async fn tokens_compare_in_the_order_of_events_and_hold_their_time() {
    let site = Site::shared(&[]).await;
    let collection = site.at(HUB);
    let client = site.client(HUB);
    let mut stream = collection.watch().batch_size(2).await.unwrap();
    // Ordinary writes, several with one cluster time, of every kind, and replies that hold no event.
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
        let token = stream.resume_token().expect("a token after every reply");
        let token = RawDocumentBuf::try_from(&bson::serialize_to_document(&token).unwrap()).unwrap();
        let position = Position::from_token(&token).expect("a token");
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
