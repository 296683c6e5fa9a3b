//! Parts that have nothing to copy, because their collection is empty, or because neither side has a document of the
//! zone.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::Job;
use crate::link::apply::mark::Mark;
use crate::link::lifecycle::Link;
use crate::link::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Part;
use crate::mongo::scan;
use crate::rules::copy::Policy;
use crate::rules::names::Zone;

/// Collections looked at concurrently.
const TOGETHER: usize = 4;

impl<S: Source> Link<'_, S> {
    /// Finishes the parts of these zones that were never copied and have nothing to copy. All at once, because a new
    /// site may have hundreds of empty collections. The link has a position in the change stream, so the stream brings
    /// every document that comes after the look. Returns the numbers of the new parts' collections that are empty at
    /// the source.
    pub(in crate::link) async fn finish_empty(
        &mut self,
        zones: &[(&Zone, Policy)],
        stop: &CancellationToken,
    ) -> Result<HashSet<u16>, Error> {
        let (source, destination) = (self.source.server().clone(), self.destination_server());
        let checkpoint = self.checkpoint();
        let is_new = |(part, _): &(Part, Policy)| {
            let is_interrupted = checkpoint.copying.as_ref().is_some_and(|up_to| up_to.part == *part);
            !is_interrupted && !checkpoint.copied.contains(part) && !checkpoint.left.contains(part)
        };
        let mut parts: HashMap<u16, Vec<(Part, Policy)>> = HashMap::new();
        for (number, namespace) in (0u16..).zip(source.namespaces()) {
            let named = zones.iter().map(|(zone, policy)| (Part::new(namespace, zone), *policy));
            let new: Vec<_> = named.filter(is_new).collect();
            if !new.is_empty() {
                parts.insert(number, new);
            }
        }
        if parts.is_empty() {
            return Ok(HashSet::new());
        }
        let (source_from, destination_from) = (source.now().await?, destination.now().await?);
        // The destination counts only if the source has nothing.
        let looks = parts.into_iter().map(|(number, parts)| {
            let (at_source, at_destination) = ((&source, source_from), (&destination, destination_from));
            let is_empty = async move |(server, from)| scan::is_empty(server, number, from).await;
            async move {
                let is_source_empty = is_empty(at_source).await?;
                Ok((number, parts, is_source_empty, is_source_empty && is_empty(at_destination).await?))
            }
        });
        let looks = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(TOGETHER).try_collect::<Vec<_>>();
        // A server may take long, and nothing is lost if the link must stop.
        let looking = self.cell().pulse().while_waiting(looks);
        let Some(looks) = stop.run_until_cancelled(looking).await else { return Ok(HashSet::new()) };
        let (mut empty, mut empty_at_source) = (Vec::new(), HashSet::new());
        for (number, parts, is_source_empty, is_destination_empty) in looks? {
            if is_source_empty {
                empty_at_source.insert(number);
            }
            let is_done = |policy: Policy| policy.has_nothing_to_copy(is_source_empty, is_destination_empty);
            empty.extend(parts.into_iter().filter(|(_, policy)| is_done(*policy)).map(|(part, _)| part));
        }
        if empty.is_empty() {
            return Ok(empty_at_source);
        }
        tracing::info!(parts = empty.len(), "nothing to copy from empty collections");
        self.save(Some(Mark::Empty(empty))).await?;
        let all = (0u16..).zip(source.namespaces()).map(|(number, _)| number).collect();
        self.learn_collections(&all).await?;
        Ok(empty_at_source)
    }
}

/// True if neither side has a document of the zone. The source as of `start` or later: the stream brings what came
/// since.
pub(super) async fn is_empty(job: &Job, start: Timestamp) -> Result<bool, Error> {
    let source_end = job.source_end();
    if !scan::is_empty_area(&job.source, source_end.area, job.source.now().await?.max(start)).await? {
        return Ok(false);
    }
    scan::is_empty_area(&job.destination, job.destination_end().area, job.destination.now().await?).await
}
