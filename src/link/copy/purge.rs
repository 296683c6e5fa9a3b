//! The end of a zone no longer watched: the zone's documents are deleted at the spoke.

use bson::Timestamp;
use bson::raw::RawBson;
use tokio_util::sync::CancellationToken;

use super::found::Found;
use super::uplink_has_carried;
use crate::link::apply::mark::Mark;
use crate::link::apply::work::Work;
use crate::link::lifecycle::{Link, Stopped};
use crate::link::reached::Waited;
use crate::link::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Part;
use crate::mongo::metadata::foreign;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::scan::{self, Area, Range, Which};
use crate::mongo::walk::Difference;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::step::{Step, Write, Zones};

impl<S: Source> Link<'_, S> {
    /// Deletes the destination's documents of a part, except for documents registered as foreign. After a failure, the
    /// next attempt continues with the remaining documents.
    pub(in crate::link) async fn purge(
        &mut self,
        part: &Part,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        let (hub, spoke) = (self.source.server().clone(), self.destination_server());
        let number = spoke.namespaces().iter().position(|namespace| namespace.to_string() == part.namespace);
        let mut after = None;
        while let Some(namespace) = number.and_then(|number| u16::try_from(number).ok()) {
            if stop.is_cancelled() {
                return Ok(Some(Stopped));
            }
            // One page at a time, in the order of `_id`.
            let area = Area::of(namespace, Which::Of(&part.zone));
            let from = after.as_ref().map(RawBson::as_raw_bson_ref);
            let page = scan::page(&spoke, area, Range::from(from, spoke.now().await?)).await?;
            let Some(last) = page.documents().next_back() else { break };
            after = Some(scan::id_of(&spoke, last)?);
            // Foreign documents belong to the spoke's applications and stay. The uplink registers them on its way.
            if uplink_has_carried(self.spoke, &spoke, page.at, stop).await? == Waited::Stopped {
                return Ok(Some(Stopped));
            }
            let mut differences = Vec::new();
            for document in page.documents() {
                let id = scan::id_of(&spoke, document)?;
                let key = Key::new(namespace, id.as_raw_bson_ref());
                differences.push(Difference { key, id, lead: None, follow: Some(document.to_owned()) });
            }
            let wanted: Wanted<'_> =
                differences.iter().map(|found| (found.key.clone(), found.id.as_raw_bson_ref())).collect();
            let foreign = foreign::among(&spoke, &wanted).await?;
            differences.retain(|found| !foreign.contains(&found.key));
            // A version that the hub does not have is set aside.
            let wanted: Wanted<'_> =
                differences.iter().map(|found| (found.key.clone(), found.id.as_raw_bson_ref())).collect();
            let at_hub = read::documents(&hub, &wanted, None, When::NotBefore(hub.now().await?)).await?;
            let is_at_hub =
                |found: &Difference| at_hub.documents.get(&found.key).is_some_and(|document| *document == found.follow);
            let inferred = differences.iter().filter(|found| !is_at_hub(found));
            let inferred = inferred.map(|found| (found.key.clone(), Inference::Purge)).collect();
            // The zone in the filter spares a document that has moved meanwhile.
            let found = Found { differences, source_at: Timestamp { time: 0, increment: 0 }, ahead: None };
            let steps = found.differences.iter().enumerate().map(|(event, difference)| Step {
                event,
                key: difference.key.clone(),
                id: difference.id.as_raw_bson_ref(),
                zones: Zones::One(part.zone.as_str()),
                write: Write::Delete,
                hub_edit: None,
            });
            let work =
                Work { steps: steps.collect(), changes: found.differences.len(), inferred, ..Work::empty(&found) };
            self.apply(work).await?;
        }
        tracing::info!(ns = part.namespace, zone = %part.zone, "no longer watched, and purged");
        // Only now the part is gone: an interrupted purge begins again.
        self.save(Some(Mark::Left { kept: Vec::new(), purged: vec![part.clone()] })).await?;
        Ok(None)
    }
}
