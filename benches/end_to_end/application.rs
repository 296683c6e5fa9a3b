//! The writes of an application: documents of a given size and changes to them, in commands of 1,000 statements.
//!
//! All commands are built before the clock starts, and the program and the floor send the same bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Result, ensure};
use bson::raw::{CStr, RawArrayBuf, cstr};
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Collection;

/// Statements per command.
const TOGETHER: usize = 1_000;

/// Bytes of the documents in a command, at most: the driver sends no command of more than 16 MB.
const TOGETHER_BYTES: usize = 8_000_000;

/// Inserts and deletes of 1,000 mixed changes. The rest are updates.
const MIXED_INSERTS: usize = 700;
const MIXED_DELETES: usize = 50;

/// Commands that an application sends one after the other.
pub struct Batch(Vec<Command>);

enum Command {
    Insert(Vec<RawDocumentBuf>),
    Other { command: RawDocumentBuf, statements: usize },
}

impl Batch {
    /// Number of documents that the batch changes.
    pub fn changes(&self) -> usize {
        let changes = |command: &Command| match command {
            Command::Insert(documents) => documents.len(),
            Command::Other { statements, .. } => *statements,
        };
        self.0.iter().map(changes).sum()
    }

    /// Sends the commands, each after the acknowledgement of the previous command.
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

/// Writes the batches as fast as the server acknowledges them.
pub async fn write(collection: &Collection<RawDocumentBuf>, batches: &[Batch]) -> Result<()> {
    for batch in batches {
        batch.write(collection).await?;
    }
    Ok(())
}

/// Documents of one size in one zone, the same number in each round, with `_id`s that no other load uses.
pub struct Load {
    zone: String,
    /// Documents per round.
    pub documents: usize,
    /// Approximate size of a document in bytes.
    pub bytes: usize,
    first: i64,
    text: String,
}

/// Number of `_id`s reserved for each load.
const IDS: i64 = 1 << 32;

impl Load {
    /// Reserves a range of `_id`s for documents of `bytes` bytes in `zone`.
    pub fn new(zone: &str, documents: usize, bytes: usize) -> Self {
        static NEXT: AtomicI64 = AtomicI64::new(0);
        const OTHER_FIELDS_BYTES: usize = 130;
        let text = "x".repeat(bytes.saturating_sub(OTHER_FIELDS_BYTES));
        Self { zone: zone.to_owned(), documents, bytes, first: NEXT.fetch_add(IDS, Ordering::Relaxed), text }
    }

    /// The document size as text, in kB.
    pub fn size(&self) -> String {
        format!("{} kB", self.bytes as f64 / 1e3)
    }

    /// Selects all documents of the load.
    pub fn filter(&self) -> Document {
        doc! { "_id": { "$gte": self.first, "$lt": self.first + IDS } }
    }

    /// Inserts the documents of a round.
    pub fn inserts(&self, round: usize) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.insert(numbers)])
    }

    /// Sets one field of each document of a round.
    pub fn updates(&self, round: usize, value: i32) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.update(numbers, value)])
    }

    /// Replaces each document of a round with the outcome of [`Load::updates`].
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

    /// Deletes the documents of a round.
    pub fn deletes(&self, round: usize) -> Vec<Batch> {
        self.batches(round, |numbers| vec![self.delete(numbers)])
    }

    /// Inserts, updates and deletes in the proportion 70:25:5. The first batch only inserts.
    pub fn mix(&self, round: usize) -> Vec<Batch> {
        let batch = |number: usize| {
            let begin = (round * self.mixed_batches() + number) * MIXED_INSERTS;
            let mut commands = vec![self.insert(begin..begin + MIXED_INSERTS)];
            if number > 0 {
                // Updates and deletes change documents that the previous batch inserted.
                let former = begin - MIXED_INSERTS;
                let kept = former + TOGETHER - MIXED_INSERTS - MIXED_DELETES;
                commands.push(self.update(former..kept, 1));
                commands.push(self.delete(kept..kept + MIXED_DELETES));
            }
            Batch(commands)
        };
        (0..self.mixed_batches()).map(batch).collect()
    }

    /// Number of documents that a round of [`Load::mix`] leaves.
    pub fn left_by_mix(&self) -> usize {
        self.mixed_batches() * MIXED_INSERTS - (self.mixed_batches() - 1) * MIXED_DELETES
    }

    fn mixed_batches(&self) -> usize {
        (self.documents / TOGETHER).max(2)
    }

    /// One document. `value` is the field that an update sets, and 0 after an insert.
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

/// Appends statements to a command. The program and the floor use collections named `messages` in different databases.
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
