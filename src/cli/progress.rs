//! Progress of a long command on standard error: a bar on a terminal, else one line every 10 s.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Interval of the progress lines without a terminal.
const INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    written: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, written: Instant::now() }
    }

    /// Shows the documents done so far, and the estimated total, of the named work.
    pub(super) fn show(&mut self, what: &str, documents: u64, estimated: Option<u64>) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
            bar.set_length(estimated.unwrap_or(documents).max(documents));
            bar.set_position(documents);
        } else if self.written.elapsed() >= INTERVAL {
            self.written = Instant::now();
            let of = estimated.map(|estimated| format!(" of about {estimated}")).unwrap_or_default();
            eprintln!("{what}: {documents}{of} documents");
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
