//! `spokesync set-aside`: lists, shows and restores versions of documents that links have deleted or replaced. The
//! command connects to the servers itself and needs no running process.

use anyhow::{Context, Result, bail};
use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::{Bson, Document};
use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use serde_json::json;

use super::servers::endpoints;
use super::shown::shown;
use crate::config::Config;
use crate::mongo::error::Error;
use crate::mongo::metadata::set_aside::{self, Saved};
use crate::mongo::server::Server;

const CONNECTIONS: u32 = 2;

#[derive(Subcommand)]
pub(super) enum AsideCommand {
    /// List the copies at all servers: versions of documents that a link deleted or replaced, and changes that found no
    /// document at the hub. A copy is kept for 30 days.
    List {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print a copy as JSON, with the whole document.
    Show {
        /// Number of the version, as in `list`.
        version: ObjectId,
    },
    /// Insert the document of a copy at the server of the copy, and delete the copy.
    ///
    /// The insert is like an application's: the links carry it. Fails if the server has a document of the same `_id`.
    Restore {
        /// Number of the version, as in `list`.
        version: ObjectId,
    },
}

pub(super) fn run(config: &Config, wanted: &AsideCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    runtime.block_on(async {
        let connecting = endpoints(config, CONNECTIONS).map(|(_, endpoint)| async move { endpoint.connect().await });
        let servers = futures_util::future::try_join_all(connecting).await?;
        match wanted {
            AsideCommand::List { json } => list(&servers, *json).await,
            AsideCommand::Show { version } => {
                let (_, saved) = find(&servers, *version).await?;
                let saved = Bson::Document(Document::try_from(saved).context("the copy is no valid document")?);
                println!("{:#}", saved.into_relaxed_extjson());
                Ok(())
            }
            AsideCommand::Restore { version } => restore(&servers, *version).await,
        }
    })
}

async fn list(servers: &[Server], json: bool) -> Result<()> {
    let mut copies: Vec<(&Server, Saved)> = Vec::new();
    for server in servers {
        copies.extend(set_aside::list(server).await?.into_iter().map(|saved| (server, saved)));
    }
    let kind = |saved: &Saved| if saved.is_change { "change" } else { "document" };
    let id = |saved: &Saved| saved.id.clone().into_relaxed_extjson();
    let at = |saved: &Saved| saved.at.try_to_rfc3339_string().unwrap_or_default();
    if json {
        let shown = copies.iter().map(|(server, saved)| {
            json!({
                "version": saved.version.to_hex(), "server": server.name().as_ref(), "ns": saved.namespace,
                "id": id(saved), "at": at(saved), "kind": kind(saved), "reason": saved.reason,
            })
        });
        println!("{:#}", shown.collect::<serde_json::Value>());
        return Ok(());
    }
    if copies.is_empty() {
        println!("nothing is set aside");
        return Ok(());
    }
    let mut table = Table::new();
    let header = ["version", "server", "collection", "_id", "since", "kind", "reason"];
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(header);
    for (server, saved) in &copies {
        let (version, server) = (saved.version.to_hex(), server.name().to_string());
        let row = [version, server, saved.namespace.clone(), id(saved).to_string(), at(saved)];
        let row = row.into_iter().chain([kind(saved).to_owned(), saved.reason.clone()]);
        table.add_row(row.map(|text| shown(&text)));
    }
    println!("{table}");
    Ok(())
}

async fn find(servers: &[Server], version: ObjectId) -> Result<(&Server, RawDocumentBuf)> {
    for server in servers {
        if let Some(saved) = set_aside::find(server, version).await? {
            return Ok((server, saved));
        }
    }
    bail!("no server has a copy with version {version}: `spokesync set-aside list` shows all copies")
}

async fn restore(servers: &[Server], version: ObjectId) -> Result<()> {
    let (server, saved) = find(servers, version).await?;
    match set_aside::restore(server, &saved).await {
        Err(Error::Refused { refusal, .. }) => {
            bail!(
                "{} refuses the document ({}): delete the document of the same _id first, or remove the other cause",
                server.name(),
                refusal.message
            )
        }
        restored => restored?,
    }
    println!("restored at {}", server.name());
    Ok(())
}
