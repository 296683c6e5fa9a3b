//! The dead letters of a link in memory: which documents have one, and what to show of the first ones. The letters
//! themselves stay at the destination.

use std::collections::HashMap;

use bson::DateTime;
use bson::raw::RawBson;

use super::pair::Evidence;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::{Kept, Pages};
use crate::mongo::server::Server;
use crate::observe::status::SHOWN_LETTERS;
use crate::rules::key::Key;
use crate::rules::names::LinkName;

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
    /// `None` if enough others are shown.
    pub(super) shown: Option<Box<Shown>>,
}

/// The shown part of a dead letter.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) code: i32,
    pub(super) message: String,
    pub(super) parked_at: DateTime,
    pub(super) later_changes: i64,
}

/// Reads the dead letters of a link, and what they say about their documents.
///
/// # Errors
/// If the server does not answer, or has too many dead letters.
pub(super) async fn load(server: &Server, link: &LinkName) -> Result<(Letters, HashMap<Key, Evidence>), Error> {
    let (mut letters, mut evidence) = (Letters::default(), HashMap::new());
    let mut pages = Pages::open(server, link);
    while let Some(page) = pages.next().await? {
        for (key, letter) in page {
            evidence.insert(key.clone(), Evidence { is_fresh: letter.is_fresh, is_dropped: false });
            if !letters.add(key, letter) {
                return Err(too_many(server, link));
            }
        }
    }
    let mut pages = Pages::dropped(server, link);
    while let Some(page) = pages.next().await? {
        for (key, mark) in page {
            evidence.entry(key).or_insert(Evidence { is_fresh: mark.is_fresh, is_dropped: true });
        }
        if evidence.len() >= letters.len() + MOST_LETTERS {
            return Err(too_many(server, link));
        }
    }
    Ok((letters, evidence))
}

/// A link with so many dead letters must wait for somebody.
pub(super) fn too_many(server: &Server, link: &LinkName) -> Error {
    server.unsuitable(&format!(
        "{link} has {MOST_LETTERS} dead letters, open or dropped: remove their cause, and retry or drop them"
    ))
}

/// The dead letters of a link, by document.
#[derive(Debug, Default)]
pub(super) struct Letters {
    all: HashMap<Key, Parked>,
    shown: usize,
    bytes: usize,
}

impl Letters {
    /// Adds a letter. False if there are too many.
    pub(super) fn add(&mut self, key: Key, letter: Kept) -> bool {
        self.remove(&key);
        if self.is_full() {
            return false;
        }
        let Kept { namespace, id, code, message, parked_at, later_changes, is_fresh, is_deleted } = letter;
        let shown = Box::new(Shown { code, message, parked_at, later_changes });
        self.insert(key, Parked { namespace, id, is_fresh, is_deleted, shown: Some(shown) });
        true
    }

    /// Adds a letter that was taken out by [`Self::remove`].
    pub(super) fn insert(&mut self, key: Key, mut letter: Parked) {
        letter.shown = letter.shown.filter(|_| self.shown < SHOWN_LETTERS);
        self.shown += usize::from(letter.shown.is_some());
        self.bytes += bytes(&letter.id);
        self.all.insert(key, letter);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Parked> {
        let letter = self.all.remove(key)?;
        self.shown -= usize::from(letter.shown.is_some());
        self.bytes -= bytes(&letter.id);
        Some(letter)
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
        self.shown < self.all.len().min(SHOWN_LETTERS / 2)
    }
}

/// Bytes of an `_id` in memory besides its place in a map.
fn bytes(id: &RawBson) -> usize {
    match id {
        RawBson::String(text) | RawBson::Symbol(text) | RawBson::JavaScriptCode(text) => text.len(),
        RawBson::Binary(binary) => binary.bytes.len(),
        RawBson::Document(document) => document.as_bytes().len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: RawBson) -> (Key, Kept) {
        let (parked_at, message) = (DateTime::from_millis(0), String::new());
        let key = Key::new(0, id.as_raw_bson_ref());
        let kept = Kept {
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

    fn add(letters: &mut Letters, id: impl Into<RawBson>) -> bool {
        let (key, kept) = letter(id.into());
        letters.add(key, kept)
    }

    #[test]
    fn only_the_first_letters_are_shown_and_room_is_noticed() {
        let (mut letters, count) = (Letters::default(), i32::try_from(SHOWN_LETTERS).expect("few"));
        assert!((0..count + 10).all(|id| add(&mut letters, id)));
        let shown = |letters: &Letters| letters.iter().filter(|(_, letter)| letter.shown.is_some()).count();
        assert_eq!((shown(&letters), letters.len(), letters.hides_some()), (SHOWN_LETTERS, SHOWN_LETTERS + 10, false));
        for id in 0..count {
            letters.remove(&Key::new(0, RawBson::Int32(id).as_raw_bson_ref()));
        }
        assert_eq!((shown(&letters), letters.len(), letters.hides_some()), (0, 10, true));
    }

    #[test]
    fn letters_are_bounded_by_the_bytes_of_their_ids() {
        let mut letters = Letters::default();
        let megabyte = |number: usize| format!("{number:08}").repeat(125_000);
        let added = (0..100).take_while(|number| add(&mut letters, megabyte(*number))).count();
        assert_eq!((added, letters.is_full()), (64, true));
        assert!(add(&mut letters, megabyte(3)), "a letter may be replaced");
        letters.remove(&letter(megabyte(3).into()).0);
        assert!(!letters.is_full() && add(&mut letters, megabyte(99)));
    }
}
