//! Errors of a server in words, each classified once by the link's reaction.
//!
//! The driver's own `Display` appends the server's whole reply, and a reply may hold documents. The text made here
//! contains only the error's kind, code and message, and the message ends where a value of a document may begin.

use std::sync::Arc;
use std::time::Duration;

use mongodb::error::ErrorKind;

use super::words;
use crate::rules::ladder::Refusal;
use crate::rules::reply::Malformed;

/// The reaction of a link to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The link restarts from its checkpoint after a delay. Repeated failures halt the link.
    Transient,
    /// The server is unreachable or does not answer. The link restarts from its checkpoint after a delay, for as long
    /// as needed.
    Unreachable,
    /// The source's oplog no longer holds the link's place in the change stream. The link reconciles.
    HistoryLost,
    /// The link halts with the reason, because only an operator can remove the cause.
    Fatal,
    /// Another process runs the link. The link waits until it knows that it may run.
    Displaced,
}

/// The server's answer to a failed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An error, or another failure of the driver.
    Error,
    /// The driver found no primary to ask.
    NoPrimary,
    /// The server closed the connection instead.
    Closed,
    /// The answer cannot be read: it quotes text of a document that is no UTF-8.
    Unreadable,
}

/// An error that a server returns, or that concerns a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command failed.
    #[error("{server}: {doing}: {reason}")]
    Command {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The failed action, such as `reading documents`.
        doing: &'static str,
        /// The message of the server or the driver.
        reason: String,
        /// The server's error code.
        code: Option<i32>,
        /// True if the server allows a retry of the transaction (`TransientTransactionError`).
        again: bool,
        /// True if the transaction may be committed despite the error (`UnknownTransactionCommitResult`).
        unsure: bool,
        /// What the server answered, if anything.
        answer: Answer,
        /// The reaction of the link.
        failure: Failure,
    },
    /// A command exceeded its time limit.
    #[error("{server}: {doing}: no answer within {} s", after.as_secs())]
    Timeout {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The action under way, such as `reading documents`.
        doing: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// A reply is malformed.
    #[error("{server}: {source}")]
    Malformed {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The reason why the reply is malformed.
        source: Malformed,
    },
    /// The server lacks a property or a feature that the sync needs.
    #[error("{server}: {reason}")]
    Unsuitable {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The reason, and the remedy if there is one.
        reason: String,
    },
    /// Documents that were to be read at once do not fit into memory together.
    #[error("{server}: reading documents: only {fitting} of them fit into memory together")]
    TooMuch {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The number of documents read so far; at least 1.
        fitting: usize,
    },
    /// The server refuses a change permanently; the transaction is void.
    #[error("{server}: {}", refusal.message)]
    Refused {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The reason, and the refused change.
        refusal: Refusal,
    },
    /// The process does not hold the spoke's lease.
    #[error("{link}: another process of the cluster runs this spoke")]
    Standby {
        /// The link's name, such as `uplink:DFW`.
        link: String,
    },
    /// The hub has not confirmed that the process runs the spoke: the other processes may take it for dead.
    #[error("{link}: the hub has not said for {} s that this process runs the spoke", after.as_secs())]
    Unconfirmed {
        /// The link's name, such as `uplink:DFW`.
        link: String,
        /// The time for which the link has waited.
        after: Duration,
    },
    /// Another process applies this link.
    #[error("{link}: another process has taken this link over ({by})")]
    Fenced {
        /// The link's name, such as `uplink:DFW`.
        link: String,
        /// The other process, as the checkpoint names it.
        by: String,
    },
}

impl Error {
    /// The reaction of a link to the error.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Command { failure, .. } => *failure,
            Self::Malformed { .. } | Self::Fenced { .. } | Self::Refused { .. } | Self::TooMuch { .. } => {
                Failure::Transient
            }
            Self::Standby { .. } => Failure::Displaced,
            Self::Timeout { .. } | Self::Unconfirmed { .. } => Failure::Unreachable,
            Self::Unsuitable { .. } => Failure::Fatal,
        }
    }

    /// True if the server rolled the transaction back because of its size, or because it met a write of an application,
    /// or if the transaction did not begin because of its size.
    pub(crate) fn is_rolled_back(&self) -> bool {
        const CODES: [i32; 4] =
            [codes::WRITE_CONFLICT, codes::LOCK_TIMEOUT, codes::TOO_LARGE_FOR_CACHE, codes::EXCEEDED_LIFETIME];
        self.code().is_some_and(|code| CODES.contains(&code)) || matches!(self, Self::TooMuch { .. })
    }

    /// True if a transaction of the same size can hardly get through: it does not fit the cache or our memory, or lasts
    /// too long.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self.code(), Some(codes::TOO_LARGE_FOR_CACHE | codes::EXCEEDED_LIFETIME))
            || matches!(self, Self::TooMuch { .. })
            || self.is_too_slow()
    }

    /// True if the server did not answer to a part of a transaction in time, perhaps because the transaction is large.
    pub(crate) fn is_too_slow(&self) -> bool {
        matches!(self, Self::Timeout { doing, .. } if [APPLYING, COMMITTING].contains(doing))
    }

    /// True if the driver found no primary in the time for a selection.
    pub(crate) fn is_without_primary(&self) -> bool {
        matches!(self, Self::Command { answer: Answer::NoPrimary, .. })
    }

    /// True if the server closed the connection instead of an answer.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Command { answer: Answer::Closed, .. })
    }

    /// True if the server's answer cannot be read.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Command { answer: Answer::Unreadable, .. })
    }

    /// The server's error code, if the server returned one.
    pub(crate) fn code(&self) -> Option<i32> {
        match self {
            Self::Command { code, .. } => *code,
            _ => None,
        }
    }

    /// The server's error code, if the server refuses the documents for good, so that no retry can help.
    pub(crate) fn refusal(&self) -> Option<i32> {
        self.code().filter(|code| REFUSALS.contains(code))
    }

    /// True if the transaction has left nothing behind and the server allows a retry. Without a primary, the link
    /// starts again from its checkpoint instead: the replica set may be another one.
    pub(crate) fn is_again(&self) -> bool {
        matches!(self, Self::Command { again: true, answer, .. } if *answer != Answer::NoPrimary)
    }

    /// True if the transaction may or may not be committed. A second commit shows the outcome.
    pub(crate) fn is_unsure(&self) -> bool {
        matches!(self, Self::Command { unsure: true, .. })
    }

    /// Describes and classifies an error of the driver.
    pub(crate) fn of_driver(server: &Arc<str>, doing: &'static str, error: &mongodb::error::Error) -> Self {
        let code = code(error);
        Self::Command {
            server: server.clone(),
            doing,
            reason: describe(error),
            code,
            again: error.contains_label(mongodb::error::TRANSIENT_TRANSACTION_ERROR),
            unsure: error.contains_label(mongodb::error::UNKNOWN_TRANSACTION_COMMIT_RESULT),
            answer: match error.kind.as_ref() {
                ErrorKind::ServerSelection { .. } => Answer::NoPrimary,
                ErrorKind::Io(io) if CLOSED.contains(&io.kind()) => Answer::Closed,
                ErrorKind::Bson(_) | ErrorKind::BsonDeserialization(_) => Answer::Unreadable,
                _ => Answer::Error,
            },
            failure: classify(error, code),
        }
    }
}

/// The errors of a connection that the other end has closed.
const CLOSED: [std::io::ErrorKind; 3] = {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    [UnexpectedEof, ConnectionReset, BrokenPipe]
};

/// What a link does while a transaction's size matters.
pub(crate) const APPLYING: &str = "applying a batch";
pub(crate) const COMMITTING: &str = "committing a transaction";

/// Server error codes, from `error_codes.yml` of the server's source.
pub(crate) mod codes {
    pub(crate) const UNAUTHORIZED: i32 = 13;
    pub(crate) const LOCK_TIMEOUT: i32 = 24;
    pub(crate) const NAMESPACE_EXISTS: i32 = 48;
    pub(crate) const WRITE_CONCERN_FAILED: i32 = 64;
    pub(crate) const WRITE_CONFLICT: i32 = 112;
    /// `TransactionExceededLifetimeLimitSeconds`.
    pub(crate) const EXCEEDED_LIFETIME: i32 = 290;
    /// `TransactionTooLargeForCache`.
    pub(crate) const TOO_LARGE_FOR_CACHE: i32 = 388;
    /// `BSONObjectTooLarge`.
    pub(crate) const OBJECT_TOO_LARGE: i32 = 10334;
    pub(crate) const DUPLICATE_KEY: i32 = 11000;
    pub(crate) const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
    pub(crate) const CAPPED_POSITION_LOST: i32 = 136;
    pub(crate) const SNAPSHOT_TOO_OLD: i32 = 239;
    pub(crate) const SNAPSHOT_UNAVAILABLE: i32 = 246;
}

/// Codes by which a server refuses documents for good, from `error_codes.yml`: bad value, failed to parse, type
/// mismatch, nested too deeply, invalid BSON, a field name with `$`, an invalid `_id`, an empty field name, a changed
/// `_id`, a failed validator, BSON that newer servers no longer take, a document that cannot grow, a document or
/// command too large, an index key too large.
const REFUSALS: [i32; 14] = [2, 9, 14, 15, 22, 52, 53, 57, 66, 121, 378, 10003, 10334, 17280];

fn classify(error: &mongodb::error::Error, code: Option<i32>) -> Failure {
    use codes::{CAPPED_POSITION_LOST, CHANGE_STREAM_HISTORY_LOST, UNAUTHORIZED};
    // Authentication failed, user not found, wrong Atlas credentials; a change stream on a standalone, a view, a system
    // collection; a missing privilege.
    const NEED_SOMEBODY: [i32; 7] = [18, 11, 8000, 40573, 166, 73, UNAUTHORIZED];
    // The primary steps down, recovers or shuts down, or the replica set has no primary.
    const IN_BETWEEN: [i32; 8] = [10107, 13435, 13436, 11600, 11602, 189, 91, 6];
    match (error.kind.as_ref(), code) {
        (_, Some(CHANGE_STREAM_HISTORY_LOST | CAPPED_POSITION_LOST)) => Failure::HistoryLost,
        (_, Some(code)) if NEED_SOMEBODY.contains(&code) => Failure::Fatal,
        (
            ErrorKind::Authentication { .. }
            | ErrorKind::InvalidArgument { .. }
            | ErrorKind::InvalidTlsConfig { .. }
            | ErrorKind::IncompatibleServer { .. }
            | ErrorKind::SessionsNotSupported,
            _,
        ) => Failure::Fatal,
        (
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. },
            _,
        ) => Failure::Unreachable,
        (_, Some(code)) if IN_BETWEEN.contains(&code) => Failure::Unreachable,
        _ => Failure::Transient,
    }
}

fn code(error: &mongodb::error::Error) -> Option<i32> {
    use mongodb::error::WriteFailure;
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        _ => None,
    }
}

/// Puts an error into words, without the server's reply that the driver keeps, and without values of documents.
fn describe(error: &mongodb::error::Error) -> String {
    use mongodb::error::WriteFailure;
    match error.kind.as_ref() {
        ErrorKind::Command(command) => {
            format!("{} ({}): {}", command.code_name, command.code, words::of_command(&command.message))
        }
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            format!("error {}: {}", write.code, words::of_write(write.code, &write.message))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
            format!("{} ({}): {}", concern.code_name, concern.code, words::of_command(&concern.message))
        }
        // The driver's message quotes the `Display` of the error that cleared the pool.
        ErrorKind::ConnectionPoolCleared { .. } => {
            "the connection was closed after an error on another connection".to_owned()
        }
        kind => words::shorten(&kind.to_string()),
    }
}
