//! `spokesync status`: prints a table of hub and spokes from the running process.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table};
use serde_json::Value;

use super::act::copying as copying_of;
use super::client::Client;
use super::shown::{shown, shown_lines};
use crate::config::Config;

const INTERVAL: Duration = Duration::from_secs(2);

/// Longest error text, in characters. Longer texts are cut.
const ERROR_WIDTH: usize = 70;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Redraw the table every 2 seconds until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print the process's answer as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(config: &Config, options: &Options) -> Result<()> {
    let client = Client::of(config);
    loop {
        let status = client.get("/api/v1/status")?;
        let text = if options.json { format!("{status:#}") } else { render(&status, std::io::stdout().is_terminal()) };
        if options.watch && std::io::stdout().is_terminal() && !options.json {
            // ANSI codes: cursor to the top left corner, clear the screen.
            print!("\x1b[H\x1b[2J");
        }
        println!("{text}");
        if !options.watch {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Renders hub line, table, copies and errors. The table fits into 80 columns.
fn render(status: &Value, colours: bool) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "spoke",
        "state",
        "up lag",
        "rows up",
        "down lag",
        "rows down",
        "loss in",
        "dead",
    ]);
    // A row per spoke. "loss in" shows the smaller time to loss of both links.
    for spoke in status["spokes"].as_array().into_iter().flatten() {
        let (up, down) = (&spoke["uplink"], &spoke["downlink"]);
        let loss = [up, down].into_iter().filter_map(|link| link["time_to_loss_seconds"].as_f64());
        let loss = loss.min_by(f64::total_cmp);
        table.add_row([
            Cell::new(shorten(text(&spoke["zone"]), 14)),
            state(text(&spoke["state"]), colours),
            Cell::new(seconds(up["lag_seconds"].as_f64())),
            Cell::new(text(&up["applied_total"])),
            Cell::new(seconds(down["lag_seconds"].as_f64())),
            Cell::new(text(&down["applied_total"])),
            Cell::new(seconds(loss)),
            Cell::new(text(&spoke["dead_letters"])),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let hub = &status["hub"];
    let mut all = format!(
        "hub {}, {} change streams, {} events, lag {}; up {}\n{table}",
        text(&hub["state"]),
        text(&hub["open_streams"]),
        text(&hub["events_total"]),
        seconds(hub["lag_seconds"].as_f64()),
        seconds(status["uptime_seconds"].as_f64()),
    );
    for line in members(status).into_iter().chain(copies(status)).chain(troubles(status)) {
        all += &format!("\n{line}");
    }
    all
}

/// Describes the processes that share the spokes, a line each: what each runs, and the state unless it streams. Nothing
/// if there is only one process.
fn members(status: &Value) -> Vec<String> {
    let all: Vec<&Value> = status["cluster"]["members"].as_array().into_iter().flatten().collect();
    if all.len() < 2 {
        return Vec::new();
    }
    let describe = |member: &&Value| {
        let process = format!("{} process {}", text(&member["host"]), text(&member["pid"]));
        let is_this = member["is_this"] == true;
        let mut notes = vec![format!("alive {} ago", seconds(member["heartbeat_age_seconds"].as_f64()))];
        notes.extend(is_this.then(|| "this process".to_owned()));
        notes.extend((member["is_leaving"] == true).then(|| "leaving".to_owned()));
        notes.extend((member["has_same_configuration"] == false).then(|| "another configuration".to_owned()));
        let spokes = status["spokes"].as_array().into_iter().flatten();
        let runs = |spoke: &&Value| match is_this {
            true => spoke["state"] != "standby",
            false => spoke["elsewhere"]["holder"] == *process,
        };
        let named = |spoke: &Value| {
            let state = if is_this { &spoke["state"] } else { &spoke["elsewhere"]["state"] };
            let zone = shorten(text(&spoke["zone"]), 14);
            if state == "streaming" { zone } else { format!("{zone} ({})", state.as_str().unwrap_or("unknown")) }
        };
        let zones: Vec<String> = spokes.filter(runs).map(named).collect();
        let zones = if zones.is_empty() { "no spoke".to_owned() } else { zones.join(" ") };
        shown(&format!("{process}, {}: {zones}", notes.join(", ")))
    };
    all.iter().map(describe).collect()
}

/// Describes the progress of each copy under way, a line per copy.
fn copies(status: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for spoke in status["spokes"].as_array().into_iter().flatten() {
        for link in ["uplink", "downlink"] {
            let copying = &spoke[link]["copying"];
            let Some((what, documents, estimated)) = copying_of(&text(&spoke["zone"]), link, copying) else { continue };
            let of = estimated.map(|estimated| format!(" of about {estimated}")).unwrap_or_default();
            let left = copying["seconds_remaining"].as_f64();
            let left = left.map(|left| format!(", {} left", seconds(Some(left)))).unwrap_or_default();
            lines.push(format!("{what}: {documents}{of} documents{left}"));
        }
    }
    lines
}

/// Lists the errors of links that are not streaming, and of the configuration.
fn troubles(status: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut look = |name: String, link: &Value| {
        if link["state"] != "streaming" && link["last_error"].is_string() {
            lines.push(format!("{name}: {}", shown(&shorten(text(&link["last_error"]), ERROR_WIDTH))));
        }
    };
    look("hub".to_owned(), &status["hub"]);
    for spoke in status["spokes"].as_array().into_iter().flatten() {
        for link in ["uplink", "downlink"] {
            look(format!("{} {link}", text(&spoke["zone"])), &spoke[link]);
        }
    }
    if status["cluster"]["last_error"].is_string() {
        lines.push(format!("cluster: {}", shown(&shorten(text(&status["cluster"]["last_error"]), ERROR_WIDTH))));
    }
    if status["configuration_error"].is_string() {
        lines.push(format!("configuration: {}", shown_lines(&text(&status["configuration_error"]))));
    }
    lines
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shorten(text: String, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn state(state: String, colours: bool) -> Cell {
    let colour = match state.as_str() {
        "streaming" => Color::Green,
        "halted" | "backoff" => Color::Red,
        _ => Color::Yellow,
    };
    let cell = Cell::new(&state);
    match colours {
        true if state == "halted" => cell.fg(colour).add_attribute(Attribute::Bold),
        true => cell.fg(colour),
        false => cell,
    }
}

/// Formats a span in seconds, minutes, hours or days; `-` if unknown.
fn seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 100.0 => format!("{seconds:.1}s"),
        Some(seconds) if seconds < 6_000.0 => format!("{:.0}m", seconds / 60.0),
        Some(seconds) if seconds < 360_000.0 => format!("{:.0}h", seconds / 3_600.0),
        Some(seconds) => format!("{:.0}d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_fits_into_80_columns_and_names_what_is_wrong() {
        let link = |state: &str, error: Option<&str>| {
            json!({
                "state": state, "lag_seconds": 1_234.5, "applied_total": 123_456_789, "time_to_loss_seconds": 86_400.0,
                "last_error": error,
            })
        };
        let long = "x".repeat(200);
        let status = json!({
            "uptime_seconds": 12.0,
            "hub": { "state": "streaming", "open_streams": 1, "events_total": 5, "lag_seconds": 0.0, "last_error": null },
            "spokes": [
                { "zone": "a zone with a name that is long", "state": "initial_sync", "dead_letters": 12,
                  "uplink": link("initial_sync", None), "downlink": link("backoff", Some(&long)) },
            ],
            "configuration_error": null,
        });
        let text = render(&status, false);
        for line in text.lines().filter(|line| !line.starts_with("a zone with a name that is long downlink")) {
            assert!(line.chars().count() <= 80, "{}: {line}", line.chars().count());
        }
        assert!(text.contains("long downlink: xxx") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn every_process_is_named_with_what_it_runs() {
        let member = |pid: i32, is_this: bool| {
            json!({
                "host": "box", "pid": pid, "is_this": is_this, "is_leaving": false, "has_same_configuration": is_this,
                "heartbeat_age_seconds": 0.5,
            })
        };
        let spoke = |zone: &str, state: &str, elsewhere: Value| json!({ "zone": zone, "state": state, "elsewhere": elsewhere, "uplink": {}, "downlink": {} });
        let elsewhere = |state: &str| json!({ "holder": "box process 2", "state": state });
        let spokes = [
            spoke("A", "paused", Value::Null),
            spoke("B", "standby", elsewhere("streaming")),
            spoke("C", "standby", elsewhere("backoff")),
        ];
        let status = |members: Vec<Value>| json!({ "cluster": { "members": members }, "spokes": spokes });
        let lines = members(&status(vec![member(1, true), member(2, false)]));
        let wanted = [
            "box process 1, alive 0.5s ago, this process: A (paused)",
            "box process 2, alive 0.5s ago, another configuration: B C (backoff)",
        ];
        assert_eq!(lines, wanted);
        assert!(members(&status(vec![member(1, true)])).is_empty(), "one process is nothing to tell");
    }
}
