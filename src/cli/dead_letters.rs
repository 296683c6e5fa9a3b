//! `spokesync dead-letters`: lists, retries and drops the changes that destinations refused.

use anyhow::Result;
use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use serde_json::{Value, json};

use super::client::{Client, encode};
use super::shown::shown;
use crate::config::Config;

#[derive(Subcommand)]
pub(super) enum LetterCommand {
    /// List the dead letters of all spokes.
    List {
        /// Print the process's answer as JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Read the refused documents at their source again, and apply their present version.
    Retry(Chosen),
    /// Discard dead letters. The destination keeps its version, and later changes of the documents flow again.
    Drop(Chosen),
}

#[derive(clap::Args)]
pub(super) struct Chosen {
    /// Zone of the spoke.
    zone: String,
    /// `_id` of one document, as JSON as in `list`; repeatable [default: all dead letters of the spoke].
    #[arg(long = "id", value_name = "JSON")]
    ids: Vec<String>,
}

pub(super) fn run(config: &Config, wanted: &LetterCommand) -> Result<()> {
    let client = Client::of(config);
    match wanted {
        LetterCommand::List { json } => list(&all(&client)?, *json),
        LetterCommand::Retry(selection) => tell(&client, "retry", selection)?,
        LetterCommand::Drop(selection) => tell(&client, "drop", selection)?,
    }
    Ok(())
}

/// Reads the dead letters page by page.
fn all(client: &Client) -> Result<Vec<Value>> {
    let mut letters = Vec::new();
    loop {
        let page = client.get(&format!("/api/v1/dead-letters?offset={}", letters.len()))?;
        let Value::Array(page) = page else { return Ok(letters) };
        if page.is_empty() {
            return Ok(letters);
        }
        letters.extend(page);
    }
}

fn list(all: &[Value], json: bool) {
    if json {
        println!("{:#}", Value::from(all));
        return;
    }
    if all.is_empty() {
        println!("no dead letters");
        return;
    }
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(["link", "collection", "_id", "since", "reason"]);
    for letter in all {
        let text = |key: &str| letter[key].as_str().unwrap_or_default().to_owned();
        let link = format!("{}:{}", text("link"), text("zone"));
        let row = [link, text("ns"), letter["id"].to_string(), text("parked_at"), text("reason")];
        table.add_row(row.map(|text| shown(&text)));
    }
    println!("{table}");
}

fn tell(client: &Client, wanted: &str, selection: &Chosen) -> Result<()> {
    // An argument that is not JSON counts as a string.
    let ids = selection.ids.iter().map(|id| serde_json::from_str(id).unwrap_or_else(|_| json!(id)));
    let ids: Vec<Value> = ids.collect();
    let body = if ids.is_empty() { json!({}) } else { json!({ "ids": ids }) };
    client.post(&format!("/api/v1/spokes/{}/dead-letters/{wanted}", encode(&selection.zone)), &body)?;
    println!("accepted: `spokesync dead-letters list` shows the remaining dead letters");
    Ok(())
}
