//! The last lines of each actor, for followers. A slow follower misses lines, and learns the number of missed lines.
//!
//! Followers delay neither the log nor each other. All followers share the same kept lines.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tracing::Level;

/// Number of lines kept of one actor, and of all actors together.
const KEPT: usize = 200;

/// Maximum size of the kept lines, in bytes. A single line may be larger.
const KEPT_BYTES: usize = 32_000;

#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Time of the line (RFC 3339).
    pub(crate) time: String,
    pub(crate) level: Level,
    pub(crate) actor: Arc<str>,
    pub(crate) generation: Option<u64>,
    pub(crate) message: String,
    pub(crate) fields: Map<String, Value>,
}

impl Line {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "time": self.time, "level": self.level.as_str().to_lowercase(), "actor": &*self.actor,
            "generation": self.generation, "message": self.message, "fields": self.fields,
        })
    }

    fn bytes(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.as_str().map_or(8, str::len));
        self.message.len() + fields.sum::<usize>() + 100
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:>5} {}", self.time, self.level, self.actor)?;
        if let Some(generation) = self.generation {
            write!(f, "#{generation}")?;
        }
        write!(f, ": {}", self.message)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// The last lines of one actor, or of all.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    kept: Mutex<Lines>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// Number of lines dropped before the kept lines.
    before: u64,
}

#[derive(Debug)]
pub(crate) struct News {
    /// Number of lines dropped before the follower read them.
    pub(crate) missed: u64,
    pub(crate) lines: Vec<Arc<Line>>,
    /// Number of all lines so far. The follower continues after this number.
    pub(crate) read: u64,
}

impl Stream {
    fn add(&self, line: Arc<Line>) {
        let mut kept = self.kept();
        kept.bytes += line.bytes();
        kept.lines.push_back(line);
        while kept.lines.len() > KEPT || (kept.bytes > KEPT_BYTES && kept.lines.len() > 1) {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.bytes();
            kept.before += 1;
        }
        drop(kept);
        self.changed.notify_waiters();
    }

    /// Returns the lines after the first `read` lines.
    pub(crate) fn after(&self, read: u64) -> News {
        let kept = self.kept();
        let missed = kept.before.saturating_sub(read);
        let known = usize::try_from(read.saturating_sub(kept.before)).unwrap_or(usize::MAX);
        let lines = kept.lines.iter().skip(known).cloned().collect();
        News { missed, lines, read: kept.before + kept.lines.len() as u64 }
    }

    /// Waits for lines after the first `read` lines.
    pub(crate) async fn next(&self, read: u64) -> News {
        loop {
            let changed = self.changed.notified();
            let news = self.after(read);
            if !news.lines.is_empty() {
                return news;
            }
            changed.await;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Lines> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Streams {
    actors: DashMap<Arc<str>, Arc<Stream>>,
    all: Arc<Stream>,
}

impl Streams {
    pub(super) fn add(&self, line: Arc<Line>) {
        let stream = self.actors.entry(line.actor.clone()).or_default().clone();
        stream.add(line.clone());
        self.all.add(line);
    }

    /// An actor's stream, if the actor has logged a line.
    pub(crate) fn get(&self, actor: &str) -> Option<Arc<Stream>> {
        self.actors.get(actor).map(|stream| stream.clone())
    }

    pub(crate) fn all(&self) -> &Arc<Stream> {
        &self.all
    }

    /// Names of all actors with a line, in order.
    pub(crate) fn actors(&self) -> Vec<String> {
        let mut actors: Vec<String> = self.actors.iter().map(|stream| stream.key().to_string()).collect();
        actors.sort();
        actors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(actor: &str, message: String) -> Arc<Line> {
        let (time, fields) = (String::new(), Map::new());
        Arc::new(Line { time, level: Level::INFO, actor: actor.into(), generation: None, message, fields })
    }

    #[test]
    fn a_slow_follower_learns_the_number_of_missed_lines() {
        let streams = Streams::default();
        for number in 0..KEPT + 30 {
            streams.add(line("DFW/reader", number.to_string()));
        }
        let news = streams.get("DFW/reader").expect("it has a stream").after(10);
        assert_eq!((news.missed, news.lines.len(), news.read), (20, KEPT, (KEPT + 30) as u64));
        assert_eq!(news.lines[0].message, "30");
    }

    #[test]
    fn a_thousand_actors_stay_within_their_bounds() {
        let streams = Streams::default();
        for actor in 0..1_000 {
            for _ in 0..20 {
                streams.add(line(&format!("{actor}/reader"), "x".repeat(10_000)));
            }
        }
        let kept: usize = streams.actors.iter().map(|stream| stream.kept().bytes).sum();
        assert!(kept <= 1_000 * (KEPT_BYTES + 11_000), "{kept}");
        assert_eq!(streams.actors().len(), 1_000);
    }

    #[tokio::test]
    async fn a_follower_gets_lines_as_they_come() {
        let streams = Arc::new(Streams::default());
        streams.add(line("a", "one".to_owned()));
        let stream = streams.get("a").expect("it has a stream");
        let read = stream.next(0).await.read;
        let later = streams.clone();
        let writing = async move {
            tokio::task::yield_now().await;
            later.add(line("a", "two".to_owned()));
        };
        let (news, ()) = tokio::join!(stream.next(read), writing);
        assert_eq!((news.lines.len(), news.lines[0].message.as_str(), news.missed), (1, "two", 0));
    }
}
