//! What a change stream of a collection shows, for tests of what must and must not be seen.

use bson::{Document, doc};
use futures_util::StreamExt;
use mongodb::Collection;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ChangeStreamEvent;

/// A change stream that was opened before what a test does.
pub struct Events {
    stream: ChangeStream<ChangeStreamEvent<Document>>,
    collection: Collection<Document>,
}

impl Events {
    /// Starts to watch.
    pub async fn watch(collection: Collection<Document>) -> Self {
        let stream = collection.watch().await.unwrap();
        Self { stream, collection }
    }

    /// Everything that happened up to now. Writes one document of no zone as a mark, and takes it away.
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
