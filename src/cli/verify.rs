//! `spokesync verify`: compares hub and spokes, lists the differences, and repairs them on request. The command
//! connects to the servers itself and needs no running process.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::progress::Progress;
use super::shown::shown;
use crate::config::Config;
use crate::observe::status::verification::VerificationCell;
use crate::rules::names::Zone;
use crate::verify::report::{Finding, Report, Verdict};
use crate::verify::scope::Scope;

const INTERVAL: Duration = Duration::from_millis(200);

/// Name of saved progress; a verification with the same name resumes an interrupted run.
const RUN: &str = "command";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Verify a single zone, at every spoke that holds the zone.
    #[arg(long)]
    zone: Option<String>,
    /// Verify a single spoke.
    #[arg(long, value_name = "ZONE")]
    spoke: Option<String>,
    /// Mend differences: a spoke gets the hub's version of a document; a document that only the owner has goes up to
    /// the hub.
    #[arg(long)]
    repair: bool,
    /// Remove documents that applications wrote at a spoke in a zone of another owner. Needs --repair.
    #[arg(long, requires = "repair")]
    purge_foreign: bool,
    /// Compare digests that the servers compute, and read documents only in case of a difference. No proof: digests of
    /// servers before 6.0.14 and 7.0.6 do not change if 1 becomes 1.0, or 1.5 becomes 1.7.
    #[arg(long)]
    quick: bool,
    /// Start from the beginning, even if an interrupted verification could resume.
    #[arg(long)]
    afresh: bool,
    /// Read at most DOCUMENTS per second from each side; 0: no limit [default: `verify.documents_per_second`
    /// in the configuration].
    #[arg(long, value_name = "DOCUMENTS")]
    rate: Option<u32>,
    /// Read from secondaries if a replica set has any [default: `verify.secondary` in the configuration].
    #[arg(long)]
    secondary: bool,
    /// Print the whole report as JSON.
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
            eprintln!("cannot verify: {}", shown(&error.to_string()));
            Exit::Failed
        }
    }
}

async fn verify(config: &Config, scope: &Scope) -> Result<Report, crate::mongo::error::Error> {
    let (cell, stop) = (VerificationCell::default(), CancellationToken::new());
    cell.begin();
    // A listener for the whole run: a new listener in each round would miss signals between two rounds.
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
            // The verification saves the progress and ends after the present page.
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
        println!("{}", shown(&line(finding)));
    }
    for untold in &report.untold {
        let zone = untold.zone.as_ref().map(|zone| format!(" zone {zone}")).unwrap_or_default();
        println!("unknown     spoke {}{zone}: {}", untold.spoke, shown(&untold.reason));
    }
    let more = if report.more > 0 { format!(", {} of them not listed", report.more) } else { String::new() };
    let repaired = if report.repaired > 0 { format!(", {} repaired", report.repaired) } else { String::new() };
    let verdict = match report.verdict() {
        Verdict::Equal => "equal",
        Verdict::Different => "not equal",
        Verdict::Untold => "inconclusive",
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
