//! The events of a collection's change stream, for tests of changes that must or must not be visible.

use bson::{Document, doc};
use futures_util::StreamExt;
use mongodb::Collection;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ChangeStreamEvent;

/// A change stream that was opened before the changes of a test.
pub struct Events {
    stream: ChangeStream<ChangeStreamEvent<Document>>,
    collection: Collection<Document>,
}

impl Events {
    /// Opens the change stream.
    pub async fn watch(collection: Collection<Document>) -> Self {
        let stream = collection.watch().await.unwrap();
        Self { stream, collection }
    }

    /// All events up to now. Inserts and deletes one document of no zone as a mark.
    pub async fn so_far(&mut self) -> Vec<ChangeStreamEvent<Document>> {
        let mark = bson::oid::ObjectId::new();
        self.collection.insert_one(doc! { "_id": mark, "_pk": 0 }).await.unwrap();
        self.collection.delete_one(doc! { "_id": mark }).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = self.stream.next().await {
            let event = event.unwrap();
            let id = event.document_key.as_ref().and_then(|key| key.get_object_id("_id").ok());
            match (id == Some(mark), event.full_document.is_some()) {
                (true, true) => {}
                (true, false) => return events,
                (false, _) => events.push(event),
            }
        }
        panic!("the change stream ended");
    }
}
