//! The log. Each line belongs to an actor and goes to the console, to the actor's file, and to the actor's followers.
//!
//! - [`streams`]: the last lines of each actor, and the followers
//! - [`files`]: one rotating file per actor
//! - [`levels`]: log levels, which can change while the process runs
//!
//! A line belongs to the actor whose span surrounds the line. A replaced actor keeps the stream; each line shows the
//! generation.

mod files;
pub(crate) mod levels;
pub(crate) mod streams;

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Invalid, Log, LogFormat};
use files::Files;
use levels::Levels;
use streams::{Line, Streams};

/// Actor of the lines outside of any actor's span.
const NOBODY: &str = "coordinator";

/// The parts of the log that can be read and set while the process runs.
#[derive(Clone, Default)]
pub(crate) struct Logs {
    pub(crate) streams: Arc<Streams>,
    pub(crate) levels: Arc<Levels>,
    /// Lines that could not be written to their file.
    pub(crate) lost: Arc<AtomicU64>,
}

/// Starts logging. Other libraries log only warnings and errors.
///
/// # Errors
/// If `log.directory` cannot be used.
pub(crate) fn start(log: &Log) -> Result<Logs, Invalid> {
    let logs = Logs { levels: Arc::new(Levels::new(log.level)), ..Logs::default() };
    let files = files(log, &logs.lost)?;
    let colours = std::io::stderr().is_terminal();
    let console = match log.format {
        LogFormat::Text => fmt::layer().with_ansi(colours).with_target(false).with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().with_target(false).with_writer(std::io::stderr).boxed(),
    };
    let cut = Cut { streams: logs.streams.clone(), files };
    let registry = tracing_subscriber::registry();
    registry
        .with(cut.with_filter(levels::filter(&logs.levels)))
        .with(console.with_filter(levels::filter(&logs.levels)))
        .init();
    Ok(logs)
}

/// Finds out whether the log files could be written, and leaves nothing behind.
///
/// # Errors
/// If `log.directory` cannot be used.
pub(crate) fn try_directory(log: &Log) -> Result<(), Invalid> {
    log.directory
        .as_ref()
        .map_or(Ok(()), |directory| files::could_write(directory).map_err(|e| unusable(directory, &e)))
}

fn files(log: &Log, lost: &Arc<AtomicU64>) -> Result<Option<Files>, Invalid> {
    let Some(directory) = &log.directory else { return Ok(None) };
    let files = Files::new(directory, log.format, lost.clone());
    files.map(Some).map_err(|error| unusable(directory, &error))
}

fn unusable(directory: &Path, error: &io::Error) -> Invalid {
    let advice = "name a folder in which spokesync's user may write";
    Invalid::whole(&directory.display().to_string(), format!("[log] directory: {error}: {advice}"))
}

#[derive(Clone, Debug)]
struct About {
    actor: Arc<str>,
    generation: Option<u64>,
}

struct Cut {
    streams: Arc<Streams>,
    files: Option<Files>,
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Cut {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let (Some(span), Some(Value::String(actor))) = (context.span(id), fields.others.get("actor")) else { return };
        let generation = fields.others.get("generation").and_then(Value::as_u64);
        span.extensions_mut().insert(About { actor: actor.as_str().into(), generation });
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let about = about(context.event_scope(event).into_iter().flatten());
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = Arc::new(Line {
            time: now(),
            level: *event.metadata().level(),
            actor: about.as_ref().map_or_else(|| NOBODY.into(), |about| about.actor.clone()),
            generation: about.and_then(|about| about.generation),
            message: fields.message,
            fields: fields.others,
        });
        if let Some(files) = &self.files {
            files.write(&line);
        }
        self.streams.add(line);
    }
}

/// The actor of the innermost span that has an actor.
fn about<'s, S: Subscriber + LookupSpan<'s>>(
    mut spans: impl Iterator<Item = tracing_subscriber::registry::SpanRef<'s, S>>,
) -> Option<About> {
    spans.find_map(|span| span.extensions().get::<About>().cloned())
}

fn now() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    if SystemTime.format_time(&mut Writer::new(&mut text)).is_err() {
        text.clear();
    }
    text
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            write!(self.message, "{value:?}").expect("writing to a string does not fail");
        } else {
            self.add(field, Value::String(format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::filter::LevelFilter;

    /// Runs `work` with a separate log, and returns the log.
    fn logged(level: LevelFilter, work: impl FnOnce(&Logs)) -> Logs {
        let logs = Logs { levels: Arc::new(Levels::new(level)), ..Logs::default() };
        let cut = Cut { streams: logs.streams.clone(), files: None };
        let subscriber = tracing_subscriber::registry().with(cut.with_filter(levels::filter(&logs.levels)));
        tracing::subscriber::with_default(subscriber, || work(&logs));
        logs
    }

    fn messages(logs: &Logs, actor: &str) -> Vec<String> {
        let stream = logs.streams.get(actor).expect("it has a stream");
        stream.after(0).lines.iter().map(|line| line.message.clone()).collect()
    }

    #[test]
    fn lines_of_two_spokes_never_mix() {
        let logs = logged(LevelFilter::INFO, |_| {
            for generation in [1_u64, 2] {
                let one = tracing::info_span!("reader", actor = "DFW/reader", generation);
                let two = tracing::info_span!("reader", actor = "HOU/reader", generation);
                one.in_scope(|| tracing::info!(ns = "a.b", "dfw {generation}"));
                two.in_scope(|| tracing::info_span!("inner").in_scope(|| tracing::info!("hou {generation}")));
            }
            tracing::info!("nobody's");
        });
        assert_eq!(messages(&logs, "DFW/reader"), ["dfw 1", "dfw 2"]);
        assert_eq!(messages(&logs, "HOU/reader"), ["hou 1", "hou 2"]);
        assert_eq!(messages(&logs, NOBODY), ["nobody's"]);
        let last = logs.streams.get("DFW/reader").expect("it has a stream").after(1).lines[0].to_json();
        assert_eq!((&last["generation"], &last["fields"]["ns"]), (&2.into(), &"a.b".into()));
        assert_eq!(logs.streams.all().after(0).lines.len(), 5);
    }

    #[test]
    fn the_level_can_be_set_for_one_actor_and_for_all() {
        let say = |actor: &'static str| {
            tracing::info_span!("span", actor).in_scope(|| tracing::debug!("quiet"));
        };
        let logs = logged(LevelFilter::INFO, |logs| {
            say("DFW/reader");
            logs.levels.set(Some("DFW/reader"), LevelFilter::DEBUG);
            say("DFW/reader");
            say("HOU/reader");
            logs.levels.set(None, LevelFilter::DEBUG);
            say("HOU/reader");
            logs.levels.set(None, LevelFilter::WARN);
            tracing::info!("no longer");
        });
        assert_eq!(messages(&logs, "DFW/reader"), ["quiet"]);
        assert_eq!(messages(&logs, "HOU/reader"), ["quiet"]);
        assert!(logs.streams.get(NOBODY).is_none());
    }
}
