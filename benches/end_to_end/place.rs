//! One server that is measured.

use anyhow::{Context, Result};
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use mongodb::options::{CollectionOptions, WriteConcern};
use mongodb::{Client, Collection, Database};
use testbed::node::{Node, Options};

/// The collection that is kept in step, as `spokes.toml` names it.
pub const NAMESPACE: &str = "bench.messages";

/// One server.
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

    /// Its connection string.
    pub fn uri(&self) -> String {
        self.node.uri()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.node.port()
    }

    /// The number of its process.
    pub fn process(&self) -> Result<u32> {
        self.node.id().context("the server does not run")
    }

    /// The collection that is kept in step.
    pub fn messages(&self) -> Collection<RawDocumentBuf> {
        self.client.database("bench").collection("messages")
    }

    /// A collection of the same name that spokesync does not look at.
    pub fn floor(&self) -> Collection<RawDocumentBuf> {
        self.client.database("floor").collection("messages")
    }

    /// Where spokesync keeps checkpoints and sessions.
    pub fn metadata(&self) -> Database {
        self.client.database("_syncmetadata")
    }

    /// The database for commands to the server itself.
    pub fn admin(&self) -> Database {
        self.client.database("admin")
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's time: that of the last entry in its oplog.
    pub async fn time(&self) -> Result<Timestamp> {
        let reply = self.admin().run_command(doc! { "ping": 1 }).await?;
        Ok(reply.get_timestamp("operationTime")?)
    }
}

/// The collection, written with write concern majority.
pub fn majority(collection: &Collection<RawDocumentBuf>) -> Collection<Document> {
    let mut options = CollectionOptions::default();
    options.write_concern = Some(WriteConcern::majority());
    collection.client().database(&collection.namespace().db).collection_with_options(collection.name(), options)
}
