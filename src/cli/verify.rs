//! `spokesync verify`: proves hub and spokes equal, or lists and mends what differs. It goes to the servers itself.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::progress::Progress;
use crate::config::Config;
use crate::observe::status::verification::VerificationCell;
use crate::rules::names::Zone;
use crate::verify::report::{Finding, Report, Verdict};
use crate::verify::scope::Scope;

/// How often the progress is shown.
const INTERVAL: Duration = Duration::from_millis(200);

/// An interrupted one of this name is gone on with.
const RUN: &str = "command";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Only this zone, at every spoke that holds it.
    #[arg(long)]
    zone: Option<String>,
    /// Only what this spoke holds.
    #[arg(long, value_name = "ZONE")]
    spoke: Option<String>,
    /// Mend what differs: the spokes get what the hub has, and what only an owner has goes up.
    #[arg(long)]
    repair: bool,
    /// With --repair: remove documents that applications wrote at spokes in zones that are not theirs.
    #[arg(long, requires = "repair")]
    purge_foreign: bool,
    /// Compare digests that the servers compute, and look closer only where they differ. Servers before 6.0.14 and 7.0.6 cannot see
    /// by them that 1 became 1.0, or 1.5 became 1.7: so this is no proof.
    #[arg(long)]
    quick: bool,
    /// Begin anew, though one was interrupted.
    #[arg(long)]
    afresh: bool,
    /// Read at most so many documents a second from each side [default: as the configuration says].
    #[arg(long, value_name = "DOCUMENTS")]
    rate: Option<u32>,
    /// Read from secondaries where there are any.
    #[arg(long)]
    secondary: bool,
    /// The whole report as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn scope(&self, config: &Config) -> Scope {
        let scheduled = Scope::scheduled(config);
        Scope {
            zone: self.zone.as_deref().map(Zone::new),
            spoke: self.spoke.as_deref().map(Zone::new),
            repair: self.repair,
            purge_foreign: self.purge_foreign,
            quick: self.quick,
            afresh: self.afresh,
            documents_per_second: self.rate.unwrap_or(scheduled.documents_per_second),
            secondary: self.secondary || scheduled.secondary,
        }
    }
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Exit {
    let scope = arguments.scope(config);
    if let Some(problem) = scope.problem(config) {
        eprintln!("{problem}");
        return Exit::Usage;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system gives threads");
    match runtime.block_on(verify(config, &scope)) {
        Ok(report) => {
            show(&report, arguments.json);
            match report.verdict() {
                Verdict::Equal => Exit::Done,
                Verdict::Different => Exit::Different,
                Verdict::Untold => Exit::Failed,
            }
        }
        Err(error) => {
            eprintln!("it cannot be told: {error}");
            Exit::Failed
        }
    }
}

async fn verify(config: &Config, scope: &Scope) -> Result<Report, crate::mongo::error::Error> {
    let (cell, stop) = (VerificationCell::default(), CancellationToken::new());
    cell.begin();
    // One listener for all of it, or a signal between two looks would be missed.
    let mut interrupts = signal(SignalKind::interrupt()).expect("the system lets a program listen for signals");
    let mut progress = Progress::new();
    let verifying = crate::verify::run(config, scope, RUN, &cell, &stop);
    tokio::pin!(verifying);
    loop {
        tokio::select! {
            report = &mut verifying => {
                progress.end();
                return report;
            }
            // What is under way ends within a page.
            _ = interrupts.recv() => stop.cancel(),
            () = tokio::time::sleep(INTERVAL) => {
                if let Some(view) = cell.view() {
                    progress.show("comparing", view.documents, view.documents_estimated);
                }
            }
        }
    }
}

fn show(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
        return;
    }
    for finding in &report.findings {
        println!("{}", line(finding));
    }
    for untold in &report.untold {
        let zone = untold.zone.as_ref().map(|zone| format!(" zone {zone}")).unwrap_or_default();
        println!("not told    spoke {}{zone}: {}", untold.spoke, untold.reason);
    }
    let more = if report.more > 0 { format!(", {} of them not listed", report.more) } else { String::new() };
    let repaired = if report.repaired > 0 { format!(", {} repaired", report.repaired) } else { String::new() };
    let verdict = match report.verdict() {
        Verdict::Equal => "equal",
        Verdict::Different => "not equal",
        Verdict::Untold => "it cannot be told",
    };
    println!("{verdict}: {} documents compared, {} differ{more}{repaired}", report.documents, report.differences);
}

fn line(finding: &Finding) -> String {
    let zone = finding.zone.as_deref().unwrap_or("not held");
    let mut line =
        format!("{:<11} spoke {} zone {zone} {} {}", finding.kind.as_str(), finding.spoke, finding.ns, finding.id);
    if !finding.paths.is_empty() {
        line += &format!(": {}", finding.paths.join(", "));
    }
    if let Some(repair) = &finding.repair {
        line += &format!("; {repair}{}", if finding.repaired { ", and is equal now" } else { "" });
    }
    line
}
