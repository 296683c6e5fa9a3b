//! The dead letters of a link in memory: which documents have one, and what to show of the first ones. The letters
//! themselves stay at the destination.

use std::collections::HashMap;

use bson::DateTime;
use bson::raw::RawBson;

use super::pair::Evidence;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::{self, Kept};
use crate::mongo::server::Server;
use crate::observe::status::SHOWN_LETTERS;
use crate::rules::key::Key;
use crate::rules::names::LinkName;
use crate::rules::opaque;

/// Dead letters of one link, at most. With more, somebody must look at them before the link goes on.
pub(super) const MOST_LETTERS: usize = 250_000;

/// Bytes of the `_id`s of all dead letters of one link, at most.
const MOST_BYTES: usize = 64_000_000;

/// A dead letter.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) namespace: u16,
    pub(super) id: RawBson,
    /// The refused change was an insert or a copy, so the destination never had the document.
    pub(super) is_fresh: bool,
    /// The newest later change has deleted the document at the source, as far as is known.
    pub(super) is_deleted: bool,
    /// The `_id` only stands for another one, which cannot be carried.
    pub(super) is_unnamed: bool,
}

/// What else is shown of a dead letter.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) code: i32,
    pub(super) message: String,
    pub(super) parked_at: DateTime,
    pub(super) later_changes: i64,
}

/// Reads the dead letters of a link, and what they say about their documents.
///
/// # Errors
/// If the server does not answer, or has more dead letters than a link saves.
pub(super) async fn load(server: &Server, link: &LinkName) -> Result<(Letters, HashMap<Key, Evidence>), Error> {
    let (mut letters, mut evidence) = (Letters::default(), HashMap::new());
    let mut pages = dead_letters::open(server, link);
    while let Some(page) = pages.next().await? {
        for (key, letter) in page {
            evidence.insert(key.clone(), Evidence { is_fresh: letter.is_fresh, is_dropped: false });
            letters.add(key, letter);
        }
        if letters.has_more_than_a_link_saves() {
            return Err(too_many(server, link));
        }
    }
    let mut pages = dead_letters::dropped(server, link);
    // Comparisons ask the server for marks: further ones still protect their documents there.
    while evidence.len() < letters.len() + MOST_LETTERS
        && let Some(page) = pages.next().await?
    {
        for (key, mark) in page {
            evidence.entry(key).or_insert(Evidence { is_fresh: mark.is_fresh, is_dropped: true });
        }
    }
    Ok((letters, evidence))
}

/// A link with so many dead letters must wait for somebody.
pub(super) fn too_many(server: &Server, link: &LinkName) -> Error {
    server.unsuitable(&format!(
        "{link} has {MOST_LETTERS} dead letters, or _ids of {MOST_BYTES} bytes in them: remove their cause, retry or \
         drop them, and restart the spoke"
    ))
}

/// The dead letters of a link, by document.
#[derive(Debug, Default)]
pub(super) struct Letters {
    all: HashMap<Key, Parked>,
    /// Of the first ones only.
    shown: HashMap<Key, Shown>,
    /// Bytes of all `_id`s.
    bytes: usize,
}

impl Letters {
    /// Adds a letter, or replaces one. Whether there is room is for the caller to ask.
    pub(super) fn add(&mut self, key: Key, letter: Kept) {
        self.remove(&key);
        let (parked, shown) = split(letter);
        self.bytes += opaque::bytes_of(parked.id.as_raw_bson_ref());
        self.all.insert(key.clone(), parked);
        self.show(key, shown);
    }

    /// Shows a letter from now on, if it is there and there is room.
    pub(super) fn show(&mut self, key: Key, shown: Shown) {
        if self.all.contains_key(&key) && self.shown.len() < SHOWN_LETTERS {
            self.shown.entry(key).or_insert(shown);
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Parked> {
        let letter = self.all.remove(key)?;
        self.shown.remove(key);
        self.bytes -= opaque::bytes_of(letter.id.as_raw_bson_ref());
        Some(letter)
    }

    /// Counts later changes of a document, if its letter is shown.
    pub(super) fn count(&mut self, key: &Key, changes: i64) {
        if let Some(shown) = self.shown.get_mut(key) {
            shown.later_changes += changes;
        }
    }

    /// Later changes of a document, if its letter is shown; else 0.
    pub(super) fn later_changes(&self, key: &Key) -> i64 {
        self.shown.get(key).map_or(0, |shown| shown.later_changes)
    }

    /// The letters to show.
    pub(super) fn shown(&self) -> impl Iterator<Item = (&Parked, &Shown)> {
        self.shown.iter().filter_map(|(key, shown)| Some((self.all.get(key)?, shown)))
    }

    /// True if somebody else must have written letters: a link that is full saves no more.
    fn has_more_than_a_link_saves(&self) -> bool {
        self.all.len() > MOST_LETTERS || self.bytes > MOST_BYTES + opaque::LARGEST_ID
    }

    /// True if no more letters fit.
    pub(super) fn is_full(&self) -> bool {
        self.all.len() >= MOST_LETTERS || self.bytes >= MOST_BYTES
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Parked> {
        self.all.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Parked> {
        self.all.get_mut(key)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.all.contains_key(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Parked)> {
        self.all.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True if letters are there that are not shown although there is room.
    pub(super) fn hides_some(&self) -> bool {
        self.shown.len() < self.all.len().min(SHOWN_LETTERS / 2)
    }
}

/// What a link needs of a letter, and what it only shows.
pub(super) fn split(letter: Kept) -> (Parked, Shown) {
    let Kept { namespace, id, code, message, parked_at, later_changes, is_fresh, is_deleted, is_unnamed } = letter;
    (Parked { namespace, id, is_fresh, is_deleted, is_unnamed }, Shown { code, message, parked_at, later_changes })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::link) fn letter(id: RawBson) -> (Key, Kept) {
        let (parked_at, message) = (DateTime::from_millis(0), String::new());
        let key = Key::new(0, id.as_raw_bson_ref());
        let kept = Kept {
            is_unnamed: false,
            namespace: 0,
            id,
            code: 0,
            message,
            parked_at,
            later_changes: 0,
            is_fresh: false,
            is_deleted: false,
        };
        (key, kept)
    }

    fn add(letters: &mut Letters, id: impl Into<RawBson>) {
        let (key, kept) = letter(id.into());
        letters.add(key, kept);
    }

    #[test]
    fn only_the_first_letters_are_shown_and_room_is_noticed() {
        let (mut letters, count) = (Letters::default(), i32::try_from(SHOWN_LETTERS).expect("few"));
        (0..count + 10).for_each(|id| add(&mut letters, id));
        let shown = |letters: &Letters| letters.shown().count();
        assert_eq!((shown(&letters), letters.len(), letters.hides_some()), (SHOWN_LETTERS, SHOWN_LETTERS + 10, false));
        for id in 0..count {
            letters.remove(&Key::new(0, RawBson::Int32(id).as_raw_bson_ref()));
        }
        assert_eq!((shown(&letters), letters.len(), letters.hides_some()), (0, 10, true));
    }

    #[test]
    fn a_letter_that_is_shown_later_stays_as_it_is_and_none_is_lost() {
        let mut letters = Letters::default();
        let large = "x".repeat(MOST_BYTES);
        add(&mut letters, 7);
        add(&mut letters, large);
        assert!(letters.is_full());
        let (key, kept) = letter(RawBson::Int32(7));
        letters.get_mut(&key).expect("a letter").is_deleted = true;
        letters.count(&key, 3);
        letters.show(key.clone(), split(kept).1);
        assert!(letters.get(&key).is_some_and(|letter| letter.is_deleted) && letters.later_changes(&key) == 3);
    }

    #[test]
    fn letters_are_bounded_by_the_bytes_of_their_ids() {
        let mut letters = Letters::default();
        let megabyte = |number: usize| format!("{number:08}").repeat(125_000);
        let count = (0..100).take_while(|number| {
            !letters.is_full() && {
                add(&mut letters, megabyte(*number));
                true
            }
        });
        assert_eq!(count.count(), 64);
        add(&mut letters, megabyte(3));
        assert_eq!(letters.len(), 64, "a letter may be replaced");
        letters.remove(&letter(megabyte(3).into()).0);
        assert!(!letters.is_full());
    }
}
