//! The first copy of parts that have nothing to copy, because their collection is empty at both ends.

use std::collections::HashMap;

use futures_util::future;

use crate::link::apply::mark::Mark;
use crate::link::lifecycle::Link;
use crate::link::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Part;
use crate::mongo::scan;
use crate::rules::names::Zone;

impl<S: Source> Link<'_, S> {
    /// Finishes the parts of these zones that were never copied and have an empty collection at both ends. All at once,
    /// because a new site may have hundreds of empty collections. The link has a position in the change stream, so the
    /// stream brings every document that comes after the look.
    pub(in crate::link) async fn finish_empty(&mut self, zones: &[Zone]) -> Result<(), Error> {
        let (source, destination) = (self.source.server().clone(), self.destination_server());
        let checkpoint = self.checkpoint();
        let is_new = |part: &Part| {
            let is_interrupted = checkpoint.copying.as_ref().is_some_and(|up_to| up_to.part == *part);
            !is_interrupted && !checkpoint.copied.contains(part) && !checkpoint.left.contains(part)
        };
        let mut parts: HashMap<u16, Vec<Part>> = HashMap::new();
        for (number, namespace) in (0u16..).zip(source.namespaces()) {
            let new: Vec<Part> = zones.iter().map(|zone| Part::new(namespace, zone)).filter(is_new).collect();
            if !new.is_empty() {
                parts.insert(number, new);
            }
        }
        let mut empty = Vec::new();
        for (number, parts) in parts {
            let ends = future::try_join(scan::is_empty(&source, number), scan::is_empty(&destination, number));
            if ends.await? == (true, true) {
                empty.extend(parts);
            }
        }
        if empty.is_empty() {
            return Ok(());
        }
        tracing::info!(parts = empty.len(), "empty at both ends: nothing to copy");
        self.save(Some(Mark::Empty(empty))).await?;
        let all = (0u16..).zip(source.namespaces()).map(|(number, _)| number).collect();
        self.learn_collections(&all).await
    }
}
