//! Top-level fields touched by a change.

use std::collections::BTreeSet;

/// Fields touched by a change, for the rule about concurrent edits ([`super::conflicts`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// Every field: the whole document was written or deleted.
    All,
    /// The fields of a delta.
    Some {
        /// Names at the top level of the document.
        names: BTreeSet<Box<str>>,
        /// True if a field may have been added, which changes the order of the fields.
        may_add: bool,
    },
}

impl Fields {
    /// No field, only the order of the fields.
    pub(crate) fn order() -> Self {
        Self::Some { names: BTreeSet::new(), may_add: true }
    }

    /// True if both changes may touch a common field.
    pub(crate) fn meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Some { names: ours, .. }, Self::Some { names: theirs, .. }) => !ours.is_disjoint(theirs),
            _ => true,
        }
    }

    /// True if the order of the document's fields depends on the order of the two changes.
    pub(crate) fn may_reorder(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Some { may_add: true, .. }, Self::Some { may_add: true, .. }))
    }

    /// Fields touched by either change.
    pub(crate) fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some { mut names, may_add }, Self::Some { names: more, may_add: also }) => {
                names.extend(more);
                Self::Some { names, may_add: may_add || also }
            }
            _ => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(names: &[&str], may_add: bool) -> Fields {
        Fields::Some { names: names.iter().map(|&name| name.into()).collect(), may_add }
    }

    #[test]
    fn edits_of_different_fields_do_not_meet() {
        assert!(!some(&["a"], true).meet(&some(&["b"], true)));
        assert!(some(&["a", "b"], true).meet(&some(&["b"], true)));
        assert!(Fields::All.meet(&some(&[], false)));
    }

    #[test]
    fn the_order_of_two_additions_decides_the_order_of_fields() {
        assert!(some(&["a"], true).may_reorder(&some(&["b"], true)));
        assert!(!some(&["a"], false).may_reorder(&some(&["b"], true)));
        assert!(Fields::order().may_reorder(&some(&["b"], true)));
    }

    #[test]
    fn a_union_touches_what_either_touches() {
        assert_eq!(some(&["a"], false).union(some(&["b"], true)), some(&["a", "b"], true));
        assert_eq!(some(&["a"], false).union(Fields::All), Fields::All);
    }
}
