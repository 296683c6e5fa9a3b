//! A link's mark: the progress after a batch, and the effect on the saved checkpoint.

use bson::Timestamp;

use crate::mongo::metadata::checkpoints::{Checkpoint, CopiedUpTo, Part, Reconciling};
use crate::rules::ahead::Ahead;
use crate::rules::names::Zone;
use crate::rules::position::Position;

/// The progress of a link after a batch, or after a part of a work.
#[derive(Clone, Debug)]
pub(in crate::link) enum Mark {
    /// After this position in the change stream.
    Streamed {
        end: Position,
        /// The cluster time of the newest change before the position; `None` if unknown.
        change: Option<Timestamp>,
    },
    /// After this document of a copy.
    Copied {
        up_to: CopiedUpTo,
        /// As in [`Self::Finished`], so that the stream can go on before the copy ends.
        until: Option<Timestamp>,
    },
    /// Documents of a zone were copied, up to no place yet: they may be newer than the position, as of this time.
    Ahead { zone: Zone, until: Timestamp },
    /// This part is copied.
    Finished {
        part: Part,
        /// Cluster time up to which any document of the part's zone may be newer than the link's position.
        until: Option<Timestamp>,
    },
    /// These parts have nothing to copy.
    Empty(Vec<Part>),
    /// The position in the change stream was lost: the link continues at the new position, and everything must be
    /// copied again.
    Restarted(Position),
    /// The collections of these namespaces were replaced, and must be copied again like a first copy.
    Replaced(Vec<String>),
    /// Parts must be compared for this reason. The position in the change stream stays.
    Compares {
        reason: Reconciling,
        /// `None`: all parts.
        parts: Option<Vec<Part>>,
        /// The number that has shown a restore, or 0.
        answers: i64,
    },
    /// The source is another replica set than before: the link begins anew at this position, like a new link.
    Anew(Position),
    /// The comparison, or the copy after a lost position, is done.
    Reconciled,
    /// The link no longer holds these parts.
    Left {
        /// Parts whose documents stay at the destination.
        kept: Vec<Part>,
        /// Parts whose documents are gone.
        purged: Vec<Part>,
    },
}

impl Mark {
    /// After this position in a quiet change stream.
    pub(in crate::link) fn quiet(end: Position) -> Self {
        Self::Streamed { end, change: None }
    }

    /// Moves the checkpoint to the mark.
    pub(super) fn save_in(&self, checkpoint: &mut Checkpoint) {
        match self {
            Self::Streamed { end, change } => {
                checkpoint.position = Some(end.clone());
                checkpoint.change = change.or(checkpoint.change);
            }
            Self::Copied { up_to, until } => {
                checkpoint.copying = Some(up_to.clone());
                may_be_ahead(checkpoint, &up_to.part.zone, *until);
            }
            Self::Ahead { zone, until } => may_be_ahead(checkpoint, zone, Some(*until)),
            // Changes between the lost and the new position are unknown, so every part is due again.
            Self::Restarted(position) => {
                checkpoint.position = Some(position.clone());
                checkpoint.change = None;
                forget_copied(checkpoint, |_| true);
                // What a restored server lacks still counts as newer, not as deleted.
                let is_restored = checkpoint.reconciling.is_restored();
                checkpoint.reconciling = if is_restored { Reconciling::RestoredLost } else { Reconciling::Lost };
            }
            Self::Anew(position) => {
                *checkpoint = Checkpoint {
                    position: Some(position.clone()),
                    notes: std::mem::take(&mut checkpoint.notes),
                    source_id: checkpoint.source_id,
                    partition_key: checkpoint.partition_key.take(),
                    ..Checkpoint::default()
                };
            }
            // A replaced collection counts as never copied, so that the copy deletes nothing.
            Self::Replaced(namespaces) => {
                // The newest change may be of such a collection, and then no stream may show it any more.
                checkpoint.change = None;
                let is_replaced = |namespace: &String| namespaces.contains(namespace);
                checkpoint.copied.retain(|part| !is_replaced(&part.namespace));
                checkpoint.left.retain(|part| !is_replaced(&part.namespace));
                checkpoint.collections.retain(|known| !is_replaced(&known.namespace));
                checkpoint.destination_collections.retain(|known| !is_replaced(&known.namespace));
                checkpoint.copying = None;
            }
            // The stream's position stays valid, so the opposite link need not wait.
            Self::Compares { reason, parts, answers } => {
                if *answers != 0 {
                    checkpoint.answered = *answers;
                }
                // A restored source may have lost the change, which shows one restore only.
                if reason.is_restored() {
                    checkpoint.change = None;
                }
                forget_copied(checkpoint, |part| parts.as_ref().is_none_or(|parts| parts.contains(part)));
                checkpoint.reconciling = *reason;
            }
            Self::Reconciled => checkpoint.reconciling = Reconciling::No,
            // Kept parts are remembered as left: a later copy may have to delete documents.
            Self::Left { kept, purged } => {
                checkpoint.copied.retain(|part| !kept.contains(part) && !purged.contains(part));
                checkpoint.left.retain(|part| !kept.contains(part) && !purged.contains(part));
                checkpoint.left.extend(kept.iter().cloned());
                checkpoint.copying = None;
            }
            Self::Empty(parts) => checkpoint.copied.extend(parts.iter().cloned()),
            // The part is copied; documents read during the copy may be newer than the position.
            Self::Finished { part, until } => {
                checkpoint.copying = None;
                for parts in [&mut checkpoint.copied, &mut checkpoint.left] {
                    parts.retain(|copied| copied != part);
                }
                checkpoint.copied.push(part.clone());
                may_be_ahead(checkpoint, &part.zone, *until);
            }
        }
    }

    /// Advances `ahead` to the mark. Returns the new position if the link moved in the change stream.
    pub(super) fn advance(self, ahead: &mut Ahead) -> Option<Position> {
        match self {
            Self::Streamed { end, .. } => {
                ahead.advance(end.cluster_time());
                Some(end)
            }
            Self::Restarted(position) | Self::Anew(position) => {
                ahead.advance(position.cluster_time());
                None
            }
            Self::Ahead { zone, until } => {
                ahead.has_copied(&zone, until);
                None
            }
            Self::Finished { part, until: Some(until) }
            | Self::Copied { up_to: CopiedUpTo { part, .. }, until: Some(until) } => {
                ahead.has_copied(&part.zone, until);
                None
            }
            _ => None,
        }
    }
}

/// Any document of the zone may be newer than the link's position, up to this time. A bound never goes back.
fn may_be_ahead(checkpoint: &mut Checkpoint, zone: &Zone, until: Option<Timestamp>) {
    if let Some(until) = until {
        let bound = checkpoint.ahead.entry(zone.clone()).or_insert(until);
        *bound = until.max(*bound);
    }
}

/// These parts must be copied again. Until then every copied part counts as left, because the link brought the
/// documents. An unfinished first copy begins again.
fn forget_copied(checkpoint: &mut Checkpoint, is_such: impl Fn(&Part) -> bool) {
    checkpoint.copying = None;
    for part in checkpoint.copied.extract_if(.., |part| is_such(part)) {
        if !checkpoint.left.contains(&part) {
            checkpoint.left.push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::mongo::metadata::checkpoints::Identity;
    use crate::rules::ahead::Standing;
    use crate::rules::key::Key;
    use crate::rules::names::Namespace;
    use crate::rules::past::Restored;
    use bson::raw::{RawBson, RawBsonRef};
    use bson::rawdoc;

    fn part(zone: &str) -> Part {
        part_of("b", zone)
    }

    fn part_of(collection: &str, zone: &str) -> Part {
        let namespace = Namespace { database: "a".to_owned(), collection: collection.to_owned() };
        Part::new(&namespace, &Zone::new(zone))
    }

    fn position(seconds: u32) -> Position {
        let data = format!("82{seconds:08X}000000012B0229296E04");
        Position::from_token(&rawdoc! { "_data": data.as_str() }).expect("a token")
    }

    fn at(time: u32) -> Timestamp {
        Timestamp { time, increment: 0 }
    }

    /// DFW and HOU copied, HOU left once before, BOS half copied.
    fn checkpoint() -> Checkpoint {
        Checkpoint {
            position: Some(position(5)),
            copied: vec![part("DFW"), part("HOU")],
            left: vec![part("HOU")],
            copying: Some(CopiedUpTo { part: part("BOS"), after: RawBson::Int32(1) }),
            ..Checkpoint::default()
        }
    }

    fn after(mut checkpoint: Checkpoint, mark: &Mark) -> Checkpoint {
        mark.save_in(&mut checkpoint);
        checkpoint
    }

    #[test]
    fn what_is_compared_again_is_still_known_to_be_ours() {
        let compares = after(checkpoint(), &Mark::Compares { reason: Reconciling::Asked, parts: None, answers: 0 });
        assert_eq!((compares.copied.len(), compares.copying.is_none()), (0, true));
        assert_eq!(compares.left, [part("HOU"), part("DFW")]);
        assert_eq!((compares.reconciling, compares.position.clone()), (Reconciling::Asked, Some(position(5))));
        let again = after(compares, &Mark::Finished { part: part("DFW"), until: None });
        assert_eq!((again.copied, again.left), (vec![part("DFW")], vec![part("HOU")]));
    }

    #[test]
    fn a_place_in_the_stream_moves_the_position_alone() {
        let moved = after(checkpoint(), &Mark::quiet(position(7)));
        assert_eq!(moved.position, Some(position(7)));
        assert_eq!((moved.copied, moved.left), (checkpoint().copied, checkpoint().left));
        assert!(moved.copying.is_some());
    }

    #[test]
    fn a_lost_place_begins_again_here_with_everything_to_copy() {
        let lost = after(checkpoint(), &Mark::Restarted(position(9)));
        assert_eq!((lost.position, lost.reconciling), (Some(position(9)), Reconciling::Lost));
        assert_eq!((lost.copied, lost.left), (vec![], vec![part("HOU"), part("DFW")]));
        assert!(lost.copying.is_none());
    }

    #[test]
    fn documents_copied_up_to_no_place_yet_are_bounded_and_the_place_stays() {
        let (zone, until) = (Zone::new("DFW"), Timestamp { time: 8, increment: 1 });
        let mark = Mark::Ahead { zone: zone.clone(), until };
        let before = checkpoint();
        let saved = after(before.clone(), &mark);
        assert_eq!(saved, Checkpoint { ahead: HashMap::from([(zone.clone(), until)]), ..before });
        let mut ahead = Ahead::new(HashMap::new(), 10);
        assert_eq!(mark.advance(&mut ahead), None);
        assert_eq!(ahead.bounds(std::iter::empty()), HashMap::from([(zone, until)]));
    }

    #[test]
    fn after_a_restore_only_some_parts_are_compared_and_after_a_lost_place_as_well_nothing_is_deleted() {
        let reason = Reconciling::Restored(Restored::Spoke);
        let restored = after(checkpoint(), &Mark::Compares { reason, parts: Some(vec![part("DFW")]), answers: 7 });
        assert_eq!(
            (restored.copied.clone(), restored.left.clone()),
            (vec![part("HOU")], vec![part("HOU"), part("DFW")])
        );
        assert_eq!((restored.reconciling, restored.answered), (reason, 7));
        assert_eq!(after(restored, &Mark::Restarted(position(9))).reconciling, Reconciling::RestoredLost);
    }

    #[test]
    fn another_source_makes_a_new_link() {
        let before = Checkpoint { source_id: Some(bson::Uuid::new()), opposite_seq: 7, ..checkpoint() };
        let anew = after(before.clone(), &Mark::Anew(position(9)));
        let expected = Checkpoint { position: Some(position(9)), source_id: before.source_id, ..Checkpoint::default() };
        assert_eq!(anew, expected);
    }

    #[test]
    fn a_copy_continues_after_the_document_of_its_mark() {
        let up_to = CopiedUpTo { part: part("BOS"), after: RawBson::Int32(8) };
        let copied = after(checkpoint(), &Mark::Copied { up_to, until: Some(at(6)) });
        let copying = copied.copying.expect("it copies");
        assert_eq!((copying.part, copying.after), (part("BOS"), RawBson::Int32(8)));
        assert_eq!(copied.ahead, HashMap::from([(Zone::new("BOS"), at(6))]), "the stream may go on before the end");
    }

    #[test]
    fn a_finished_part_is_copied_once_and_bounds_what_may_be_ahead() {
        let finished = after(checkpoint(), &Mark::Finished { part: part("HOU"), until: Some(at(6)) });
        assert_eq!((finished.copied.clone(), finished.left.clone()), (vec![part("DFW"), part("HOU")], vec![]));
        assert_eq!(finished.ahead, HashMap::from([(Zone::new("HOU"), at(6))]));
        let earlier = after(finished, &Mark::Finished { part: part("HOU"), until: Some(at(4)) });
        assert_eq!(earlier.ahead[&Zone::new("HOU")], at(6), "a bound never goes back");
    }

    #[test]
    fn empty_parts_count_as_copied_and_leave_an_interrupted_copy_as_it_is() {
        let empty = after(checkpoint(), &Mark::Empty(vec![part("IAH"), part("LAX")]));
        assert_eq!(empty.copied, [part("DFW"), part("HOU"), part("IAH"), part("LAX")]);
        assert!(empty.copying.is_some() && empty.ahead.is_empty());
    }

    #[test]
    fn a_replaced_collection_is_unknown_and_others_stay() {
        let mut before = checkpoint();
        before.copied.push(part_of("c", "DFW"));
        let identity = |namespace: &str| Identity { namespace: namespace.to_owned(), uuid: [7; 16] };
        before.collections = vec![identity("a.b"), identity("a.c")];
        before.destination_collections = vec![identity("a.b")];
        let replaced = after(before, &Mark::Replaced(vec!["a.b".to_owned()]));
        assert_eq!((replaced.copied, replaced.left), (vec![part_of("c", "DFW")], vec![]));
        assert_eq!((replaced.collections, replaced.destination_collections), (vec![identity("a.c")], vec![]));
        assert!(replaced.copying.is_none());
    }

    #[test]
    fn a_kept_part_counts_as_left_and_a_purged_one_as_never_held() {
        let left = after(checkpoint(), &Mark::Left { kept: vec![part("DFW")], purged: vec![part("HOU")] });
        assert_eq!((left.copied, left.left), (vec![], vec![part("DFW")]));
    }

    #[test]
    fn a_reconcile_that_is_done_is_not_done_again() {
        let before = Checkpoint { reconciling: Reconciling::Lost, ..checkpoint() };
        assert_eq!(after(before, &Mark::Reconciled).reconciling, Reconciling::No);
    }

    #[test]
    fn only_a_place_in_the_stream_counts_as_carried() {
        let mut ahead = Ahead::new(HashMap::new(), 10);
        assert_eq!(Mark::quiet(position(7)).advance(&mut ahead), Some(position(7)));
        assert_eq!(Mark::Restarted(position(9)).advance(&mut ahead), None);
        assert_eq!(Mark::Compares { reason: Reconciling::Asked, parts: None, answers: 0 }.advance(&mut ahead), None);
        let finished = Mark::Finished { part: part("HOU"), until: Some(at(12)) };
        assert_eq!(finished.advance(&mut ahead), None);
        let key = Key::new(0, RawBsonRef::Int32(1));
        let standing = |time| ahead.standing(&key, ["HOU"].into_iter(), at(time));
        assert_eq!((standing(12), standing(13)), (Standing::Unknown, Standing::Behind));
        let up_to = CopiedUpTo { part: part("HOU"), after: RawBson::Int32(8) };
        assert_eq!(Mark::Copied { up_to, until: Some(at(13)) }.advance(&mut ahead), None);
        let standing = |time| ahead.standing(&key, ["HOU"].into_iter(), at(time));
        assert_eq!((standing(13), standing(14)), (Standing::Unknown, Standing::Behind));
    }
}
