//! What an application writes: documents of a size, and changes of them, in commands of a thousand statements.
//!
//! All of it is made before the time is taken, so that both ways of doing the work send the very same bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Result, ensure};
use bson::raw::{CStr, RawArrayBuf, cstr};
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Collection;

/// How many statements a command has.
const TOGETHER: usize = 1_000;

/// A command of more bytes than these is closed: the driver sends none of more than 16 MB.
const TOGETHER_BYTES: usize = 8_000_000;

/// Of each batch of mixed changes: how many are inserts, and how many deletes. The others are updates.
const MIXED_INSERTS: usize = 700;
const MIXED_DELETES: usize = 50;

/// What is sent together: commands, one after the other.
pub struct Batch(Vec<Command>);

enum Command {
    Insert(Vec<RawDocumentBuf>),
    Other { command: RawDocumentBuf, statements: usize },
}

impl Batch {
    /// How many documents it changes.
    pub fn changes(&self) -> usize {
        let changes = |command: &Command| match command {
            Command::Insert(documents) => documents.len(),
            Command::Other { statements, .. } => *statements,
        };
        self.0.iter().map(changes).sum()
    }

    /// Writes it, and waits until it is acknowledged.
    pub async fn write(&self, collection: &Collection<RawDocumentBuf>) -> Result<()> {
        let database = collection.client().database(&collection.namespace().db);
        for command in &self.0 {
            match command {
                Command::Insert(documents) => {
                    collection.insert_many(documents).await?;
                }
                Command::Other { command, statements } => {
                    let reply = database.run_raw_command(command.clone()).await?;
                    ensure!(reply.get_i32("n")? == i32::try_from(*statements)?, "{reply}");
                }
            }
        }
        Ok(())
    }
}

/// Writes all of it, as fast as it is acknowledged.
pub async fn write(collection: &Collection<RawDocumentBuf>, batches: &[Batch]) -> Result<()> {
    for batch in batches {
        batch.write(collection).await?;
    }
    Ok(())
}

/// Documents of one size in one zone, as many in each round, with `_id`s that no other load has.
pub struct Load {
    /// The zone.
    zone: String,
    /// How many documents in each round.
    pub documents: usize,
    /// About how large each of them is.
    pub bytes: usize,
    first: i64,
    text: String,
}

/// So many `_id`s are for one load.
const IDS: i64 = 1 << 32;

impl Load {
    /// Such documents.
    pub fn new(zone: &str, documents: usize, bytes: usize) -> Self {
        static NEXT: AtomicI64 = AtomicI64::new(0);
        const OTHER_FIELDS_BYTES: usize = 130;
        let text = "x".repeat(bytes.saturating_sub(OTHER_FIELDS_BYTES));
        Self { zone: zone.to_owned(), documents, bytes, first: NEXT.fetch_add(IDS, Ordering::Relaxed), text }
    }

    /// How large they are, for people.
    pub fn size(&self) -> String {
        format!("{} kB", self.bytes as f64 / 1e3)
    }

    /// All documents of it.
    pub fn filter(&self) -> Document {
        doc! { "_id": { "$gte": self.first, "$lt": self.first + IDS } }
    }

    /// The documents of a round, inserted.
    pub fn inserts(&self, round: usize) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.insert(numbers)])
    }

    /// One field of each document of a round, set.
    pub fn updates(&self, round: usize, value: i32) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.update(numbers, value)])
    }

    /// Each document of a round, replaced by what [`Load::updates`] makes of it.
    pub fn replacements(&self, round: usize, value: i32) -> Vec<Batch> {
        let replacement = |number| rawdoc! { "q": { "_id": self.id(number) }, "u": self.document(number, value) };
        self.batches(round, |numbers| {
            vec![statements(
                rawdoc! { "update": "messages", "ordered": false },
                cstr!("updates"),
                numbers.map(replacement),
            )]
        })
    }

    /// The documents of a round, deleted.
    pub fn deletes(&self, round: usize) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.delete(numbers)])
    }

    /// Inserts, updates and deletes: 70, 25 and 5 of 100, but for the first batch, which only inserts.
    pub fn mix(&self, round: usize) -> Vec<Batch> {
        let batch = |number: usize| {
            let begin = (round * self.mixed_batches() + number) * MIXED_INSERTS;
            let mut commands = vec![self.insert(begin..begin + MIXED_INSERTS)];
            if number > 0 {
                // What the batch before this one inserted.
                let former = begin - MIXED_INSERTS;
                let kept = former + TOGETHER - MIXED_INSERTS - MIXED_DELETES;
                commands.push(self.update(former..kept, 1));
                commands.push(self.delete(kept..kept + MIXED_DELETES));
            }
            Batch(commands)
        };
        (0..self.mixed_batches()).map(batch).collect()
    }

    /// How many documents a round of [`Load::mix`] leaves.
    pub fn left_by_mix(&self) -> usize {
        self.mixed_batches() * MIXED_INSERTS - (self.mixed_batches() - 1) * MIXED_DELETES
    }

    fn mixed_batches(&self) -> usize {
        (self.documents / TOGETHER).max(2)
    }

    /// One document, as it is before and after an update.
    pub fn document(&self, number: usize, value: i32) -> RawDocumentBuf {
        rawdoc! {
            "_id": self.id(number), "_pk": self.zone.as_str(), "n": value, "vehicle": format!("vehicle-{}", number % 1_000),
            "speed": 61.5, "position": [32.9, -97.04], "text": self.text.as_str(),
        }
    }

    fn id(&self, number: usize) -> i64 {
        self.first + number as i64
    }

    fn batches(&self, round: usize, commands: impl Fn(Range<usize>) -> Vec<Command>) -> Vec<Batch> {
        let together = (TOGETHER_BYTES / self.bytes).clamp(1, TOGETHER);
        let (first, end) = (round * self.documents, (round + 1) * self.documents);
        let starts = (first..end).step_by(together);
        starts.map(|start| Batch(commands(start..(start + together).min(end)))).collect()
    }

    fn insert(&self, numbers: Range<usize>) -> Command {
        Command::Insert(numbers.map(|number| self.document(number, 0)).collect())
    }

    fn update(&self, numbers: Range<usize>, value: i32) -> Command {
        let update = |number| rawdoc! { "q": { "_id": self.id(number) }, "u": { "$set": { "n": value } } };
        statements(rawdoc! { "update": "messages", "ordered": false }, cstr!("updates"), numbers.map(update))
    }

    fn delete(&self, numbers: Range<usize>) -> Command {
        let delete = |number| rawdoc! { "q": { "_id": self.id(number) }, "limit": 1 };
        statements(rawdoc! { "delete": "messages", "ordered": false }, cstr!("deletes"), numbers.map(delete))
    }
}

/// The rest of a command on the collection `messages`, which both ways of doing the work write to, in different
/// databases.
fn statements(mut command: RawDocumentBuf, field: &CStr, statements: impl Iterator<Item = RawDocumentBuf>) -> Command {
    let mut array = RawArrayBuf::new();
    let mut number = 0;
    for statement in statements {
        array.push(statement);
        number += 1;
    }
    command.append(field, array);
    Command::Other { command, statements: number }
}
