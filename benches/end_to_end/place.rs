//! One measured server.

use anyhow::{Context, Result};
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use mongodb::options::{CollectionOptions, WriteConcern};
use mongodb::{Client, Collection, Database};
use testbed::node::{Node, Options};

/// The synchronized collection, as `spokes.toml` names it.
pub const NAMESPACE: &str = "bench.messages";

/// A server with its client.
pub struct Place {
    /// `hub`, or the zone that the spoke owns.
    pub name: String,
    node: Node,
    client: Client,
}

impl Place {
    /// Starts a server.
    pub async fn start(name: &str, options: Options) -> Result<Self> {
        let node = Node::start(name, options).await?;
        let client = node.client().await?;
        Ok(Self { name: name.to_owned(), node, client })
    }

    pub fn uri(&self) -> String {
        self.node.uri()
    }

    pub fn port(&self) -> u16 {
        self.node.port()
    }

    /// The process id of the server.
    pub fn process(&self) -> Result<u32> {
        self.node.id().context("the server is not running")
    }

    /// The synchronized collection.
    pub fn messages(&self) -> Collection<RawDocumentBuf> {
        self.client.database("bench").collection("messages")
    }

    /// The floor's collection: the same name, in a database that spokesync does not watch.
    pub fn floor(&self) -> Collection<RawDocumentBuf> {
        self.client.database("floor").collection("messages")
    }

    /// The database of spokesync's checkpoints and sessions.
    pub fn metadata(&self) -> Database {
        self.client.database("_syncmetadata")
    }

    /// The database for commands to the server.
    pub fn admin(&self) -> Database {
        self.client.database("admin")
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's cluster time: that of the last entry in the oplog.
    pub async fn time(&self) -> Result<Timestamp> {
        let reply = self.admin().run_command(doc! { "ping": 1 }).await?;
        Ok(reply.get_timestamp("operationTime")?)
    }
}

/// The same collection with write concern majority.
pub fn majority(collection: &Collection<RawDocumentBuf>) -> Collection<Document> {
    let mut options = CollectionOptions::default();
    options.write_concern = Some(WriteConcern::majority());
    collection.client().database(&collection.namespace().db).collection_with_options(collection.name(), options)
}
