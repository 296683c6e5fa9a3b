//! Log levels, which can change while the process runs.

use std::sync::{Arc, PoisonError, RwLock};

use dashmap::DashMap;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{DynFilterFn, dynamic_filter_fn};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

/// The log level of all actors, with exceptions for single actors.
#[derive(Debug)]
pub(crate) struct Levels {
    all: RwLock<LevelFilter>,
    actors: DashMap<String, LevelFilter>,
}

impl Default for Levels {
    fn default() -> Self {
        Self::new(LevelFilter::INFO)
    }
}

impl Levels {
    pub(crate) fn new(level: LevelFilter) -> Self {
        Self { all: RwLock::new(level), actors: DashMap::new() }
    }

    /// Sets the level of one actor. Without an actor, sets the level of all and removes the exceptions.
    pub(crate) fn set(&self, actor: Option<&str>, level: LevelFilter) {
        match actor {
            Some(actor) => drop(self.actors.insert(actor.to_owned(), level)),
            None => {
                self.actors.clear();
                *self.all.write().unwrap_or_else(PoisonError::into_inner) = level;
            }
        }
    }

    fn of(&self, actor: Option<&str>) -> LevelFilter {
        let own = actor.and_then(|actor| self.actors.get(actor).map(|level| *level));
        own.unwrap_or_else(|| *self.all.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Passes spokesync's own lines by the level of their actor, and warnings of other libraries.
pub(super) fn filter<S: Subscriber + for<'s> LookupSpan<'s>>(levels: &Arc<Levels>) -> impl Filter<S> + use<S> {
    let levels = levels.clone();
    let decide = move |metadata: &Metadata<'_>, context: &Context<'_, S>| {
        if metadata.is_span() || !is_ours(metadata) {
            return metadata.is_span() || is_warning(metadata);
        }
        let spans = context.lookup_current().into_iter().flat_map(|span| span.scope());
        let about = super::about(spans);
        *metadata.level() <= levels.of(about.as_ref().map(|about| &*about.actor))
    };
    let filter: DynFilterFn<S, _> = dynamic_filter_fn(decide);
    filter.with_callsite_filter(|metadata| {
        let may_pass = is_ours(metadata) || is_warning(metadata);
        if may_pass { Interest::sometimes() } else { Interest::never() }
    })
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_PKG_NAME"))
}

fn is_warning(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= LevelFilter::WARN
}
