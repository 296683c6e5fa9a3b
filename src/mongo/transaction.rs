//! Transactions: committed with write concern majority, each command with a time limit, retried if the server declares
//! a retry safe.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument};
use bson::{Bson, Document, RawDocumentBuf, Timestamp, rawdoc};
use futures_util::StreamExt;
use mongodb::ClientSession;
use mongodb::options::{Acknowledgment, TransactionOptions, WriteConcern};

use super::error::{COMMITTING, Error};
use super::read::Wanted;
use super::server::Server;
use super::words;
use crate::rules::key::Key;
use crate::rules::ladder::{Refusal, RefusedStep};
use crate::rules::names::Namespace;

/// Time limit for the majority's acknowledgement of a commit.
const COMMIT_LIMIT: Duration = Duration::from_secs(20);

/// The code of a refusal whose words cannot be read (`FailedToParse`).
const FAILED_TO_PARSE: i32 = 9;

/// An open transaction. The driver, or the server's time limit, aborts a dropped transaction.
pub(super) struct Transaction<'s> {
    server: &'s Server,
    session: &'s mut ClientSession,
}

impl<'s> Transaction<'s> {
    pub(super) async fn start(server: &'s Server, session: &'s mut ClientSession) -> Result<Self, Error> {
        let mut options = TransactionOptions::default();
        options.write_concern =
            Some(WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(COMMIT_LIMIT).build());
        let start = session.start_transaction().with_options(options).into_future();
        server.bounded("starting a transaction", start).await?;
        Ok(Self { server, session })
    }

    /// Runs any command in the transaction. A reply may hold a [`write_error`], which has aborted the transaction.
    pub(super) async fn send(
        &mut self,
        doing: &'static str,
        database: &str,
        command: RawDocumentBuf,
    ) -> Result<Document, Error> {
        let database = self.server.client().database(database);
        let (bytes, begun) = (command.as_bytes().len(), Instant::now());
        let run = database.run_raw_command(command).session(&mut *self.session).into_future();
        let sent = self.server.bounded(doing, run).await;
        if matches!(sent, Ok(_) | Err(Error::Timeout { .. })) {
            self.server.has_sent(bytes, begun.elapsed());
        }
        sent
    }

    /// Runs a write command on documents in the transaction. `whose` returns the step of a statement, by the
    /// statement's number in the command. Returns [`Error::Refused`] if the server refuses a document permanently; a
    /// refusal of the whole command names no step.
    pub(super) async fn write(
        &mut self,
        doing: &'static str,
        database: &str,
        command: RawDocumentBuf,
        whose: impl Fn(usize) -> Option<RefusedStep>,
    ) -> Result<Document, Error> {
        let server = self.server.name().clone();
        let refused = |number: Option<usize>, code, message, is_id_taken| {
            let refusal = Refusal { code, message, is_id_taken, step: number.and_then(&whose) };
            Error::Refused { server, refusal }
        };
        match self.send(doing, database, command).await {
            Ok(reply) => match write_error(&reply) {
                Some((number, code, message)) => Err(refused(Some(number), code, message, is_id_taken(&reply))),
                None => Ok(reply),
            },
            // The server refuses a document, and quotes it. A batch is halved until the step is known.
            Err(error) if error.is_unreadable() => {
                let only = whose(1).is_none().then_some(0);
                Err(refused(only, FAILED_TO_PARSE, "refused, in words that are no UTF-8".to_owned(), false))
            }
            Err(error) => match error.refusal() {
                Some(code) => Err(refused(None, code, error.to_string(), false)),
                None => Err(error),
            },
        }
    }

    /// The zones of the documents with these `_id`s. Missing documents are left out.
    pub(super) async fn zones(
        &mut self,
        number: u16,
        namespace: &Namespace,
        ids: &[RawBsonRef<'_>],
    ) -> Result<Vec<(Key, Option<String>)>, Error> {
        let field = self.server.partition_field();
        let mut projection = rawdoc! { "_id": 1 };
        projection.append(field, 1);
        let mut found = Vec::new();
        self.find(number, namespace, ids, projection, |key, document| {
            found.push((key, document.get_str(field).ok().map(str::to_owned)));
        })
        .await?;
        Ok(found)
    }

    /// The present documents. Missing documents are left out.
    pub(super) async fn documents(&mut self, wanted: &Wanted<'_>) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
        let mut found = HashMap::new();
        let server = self.server;
        for (number, namespace) in (0u16..).zip(server.namespaces()) {
            let ids: Vec<_> = wanted.iter().filter(|(key, _)| key.namespace() == number).map(|(_, id)| *id).collect();
            if !ids.is_empty() {
                let take = |key, document: &RawDocument| drop(found.insert(key, document.to_owned()));
                self.find(number, namespace, &ids, RawDocumentBuf::new(), take).await?;
            }
        }
        Ok(found)
    }

    async fn find(
        &mut self,
        number: u16,
        namespace: &Namespace,
        ids: &[RawBsonRef<'_>],
        projection: RawDocumentBuf,
        mut take: impl FnMut(Key, &RawDocument),
    ) -> Result<(), Error> {
        let doing = "reading within the transaction";
        let ids: RawArrayBuf = ids.iter().copied().collect();
        let find = rawdoc! {
            "find": namespace.collection.as_str(), "filter": { "_id": { "$in": ids } }, "projection": projection,
        };
        let database = self.server.client().database(&namespace.database);
        let open = database.run_raw_cursor_command(find).session(&mut *self.session).batch();
        let mut cursor = self.server.bounded(doing, open).await?;
        loop {
            let next = async { cursor.stream(&mut *self.session).next().await.transpose() };
            let Some(reply) = self.server.bounded(doing, next).await? else { return Ok(()) };
            let documents = reply.doc_slices().map_err(|error| Error::of_driver(self.server.name(), doing, &error))?;
            for document in documents {
                let document = document.map_err(|error| self.server.malformed(error))?;
                let Some(document) = document.as_document() else { continue };
                if let Ok(Some(id)) = document.get("_id") {
                    take(Key::new(number, id), document);
                }
            }
        }
    }

    /// Commits the transaction. Returns the server's cluster time of the commit, which is the cluster time of the
    /// change events.
    pub(super) async fn commit(self) -> Result<Timestamp, Error> {
        let mut delays = delays();
        loop {
            let commit = self.session.commit_transaction().into_future();
            let error = match self.server.bounded(COMMITTING, commit).await {
                Ok(()) => break,
                Err(error) => error,
            };
            // A repeated commit does no harm, and returns the outcome.
            let Some(delay) = delays.next().filter(|_| error.is_unsure()) else { return Err(error) };
            tokio::time::sleep(delay).await;
        }
        let time = self.session.operation_time();
        time.ok_or_else(|| self.server.unsuitable("its answers have no operationTime"))
    }
}

/// Aborts a session's transaction. After a failure, the link's next session ends the transaction.
pub(super) async fn abort(server: &Server, session: &mut ClientSession) {
    if let Err(error) = server.bounded("giving a transaction up", session.abort_transaction().into_future()).await {
        tracing::debug!(%error, "a transaction may still be open");
    }
}

/// The delays before the retries of a transaction: at most 20 retries.
pub(crate) fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(2))
        .with_max_delay(Duration::from_millis(500))
        .with_max_times(20)
        .with_jitter()
        .build()
}

/// Runs write commands, each with the name of a database, in a single transaction with retries. Returns the server's
/// cluster time of the commit, or [`Error::Refused`] if the server refuses a statement. `whose` returns the step of a
/// statement, by the numbers of the command and of the statement.
pub(crate) async fn run(
    server: &Server,
    session: &mut ClientSession,
    commands: &[(&str, RawDocumentBuf)],
    whose: impl Fn(usize, usize) -> Option<RefusedStep>,
) -> Result<Timestamp, Error> {
    let mut delays = delays();
    loop {
        match attempt(server, session, commands, &whose).await {
            Err(error) if error.is_again() => {
                abort(server, session).await;
                let Some(delay) = delays.next() else { return Err(error) };
                tokio::time::sleep(delay).await;
            }
            Err(refused @ Error::Refused { .. }) => {
                abort(server, session).await;
                return Err(refused);
            }
            result => return result,
        }
    }
}

async fn attempt(
    server: &Server,
    session: &mut ClientSession,
    commands: &[(&str, RawDocumentBuf)],
    whose: &impl Fn(usize, usize) -> Option<RefusedStep>,
) -> Result<Timestamp, Error> {
    let mut transaction = Transaction::start(server, session).await?;
    for (number, (database, command)) in commands.iter().enumerate() {
        let whose = |statement| whose(number, statement);
        transaction.write("writing in a transaction", database, command.clone(), whose).await?;
    }
    transaction.commit().await
}

/// The first write error of a reply with `ok: 1`: the statement's number, the error code and the message.
pub(super) fn write_error(reply: &Document) -> Option<(usize, i32, String)> {
    let error = reply.get_array("writeErrors").ok()?.first().and_then(Bson::as_document)?;
    let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX);
    let message = error.get_str("errmsg").unwrap_or("no reason given");
    let code = error.get_i32("code").unwrap_or(0);
    Some((index, code, words::of_write(code, message)))
}

/// True if the first write error is a duplicate of an `_id`, not of another unique index.
fn is_id_taken(reply: &Document) -> bool {
    let error = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    let pattern = error.and_then(|error| error.get_document("keyPattern").ok());
    pattern.is_some_and(|pattern| pattern.len() == 1 && pattern.contains_key("_id"))
}

/// True if the reply of an update says that a document matched and stayed as it was.
pub(super) fn has_unchanged(reply: &Document) -> bool {
    let upserted = reply.get_array("upserted").map_or(0, Vec::len);
    count(reply) > upserted + number(reply, "nModified")
}

/// How many documents a reply says it was about.
pub(super) fn count(reply: &Document) -> usize {
    number(reply, "n")
}

fn number(reply: &Document, field: &str) -> usize {
    reply.get_i32(field).ok().and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}
