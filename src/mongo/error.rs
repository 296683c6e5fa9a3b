//! What can go wrong with a server, and what is done about it. Classified here, once.
//!
//! The driver's own `Display` appends the whole reply of the server, which may hold documents; here errors are put into
//! words from their kind and code.

use std::sync::Arc;
use std::time::Duration;

use mongodb::error::ErrorKind;

use crate::rules::ladder::Refusal;
use crate::rules::reply::Malformed;

/// What a link does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Starts again from its checkpoint, after a delay.
    Transient,
    /// The same: the server cannot be reached, or does not answer. That may last, and is nobody's fault here.
    Unreachable,
    /// Its place in the change stream is gone from the source's oplog: it reconciles.
    HistoryLost,
    /// It cannot work before somebody changes something: it halts, and says why.
    Fatal,
}

/// An error of a server, or about one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command failed.
    #[error("{server}: {doing}: {reason}")]
    Command {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// What was being done.
        doing: &'static str,
        /// The server's or the driver's words.
        reason: String,
        /// The server's error code.
        code: Option<i32>,
        /// Whether the server says that its transaction can simply be tried again.
        again: bool,
        /// Whether the server may have committed the transaction all the same.
        unsure: bool,
        /// What to do about it.
        failure: Failure,
    },
    /// A command took too long.
    #[error("{server}: {doing}: no answer within {} s", after.as_secs())]
    Timeout {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// What was being done.
        doing: &'static str,
        /// For how long.
        after: Duration,
    },
    /// An answer makes no sense.
    #[error("{server}: {source}")]
    Malformed {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// What is wrong with it.
        source: Malformed,
    },
    /// The server cannot be used for this.
    #[error("{server}: {reason}")]
    Unsuitable {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// Why, and what to do.
        reason: String,
    },
    /// The server refuses a change permanently; the transaction is void.
    #[error("{server}: {}", refusal.message)]
    Refused {
        /// `hub` or `spoke DFW`.
        server: Arc<str>,
        /// The reason, and the refused change.
        refusal: Refusal,
    },
    /// Somebody else applies this link.
    #[error("{link}: another process has taken this link over ({by}); run one spokesync per configuration")]
    Fenced {
        /// Such as `uplink:DFW`.
        link: String,
        /// Who, as far as the checkpoint says.
        by: String,
    },
}

impl Error {
    /// What to do about it.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Command { failure, .. } => *failure,
            Self::Malformed { .. } | Self::Fenced { .. } | Self::Refused { .. } => Failure::Transient,
            Self::Timeout { .. } => Failure::Unreachable,
            Self::Unsuitable { .. } => Failure::Fatal,
        }
    }

    /// The server's error code, if it is the server that complained.
    pub(crate) fn code(&self) -> Option<i32> {
        match self {
            Self::Command { code, .. } => *code,
            _ => None,
        }
    }

    /// The server's error code, if it means: the server does not take these documents, whatever one does.
    pub(crate) fn refusal(&self) -> Option<i32> {
        self.code().filter(|code| REFUSALS.contains(code))
    }

    /// True if the server says that the transaction has left nothing behind and can be tried again.
    pub(crate) fn is_again(&self) -> bool {
        matches!(self, Self::Command { again: true, .. })
    }

    /// True if the transaction may be committed or not, and to commit it again tells.
    pub(crate) fn is_unsure(&self) -> bool {
        matches!(self, Self::Command { unsure: true, .. })
    }

    /// Puts a driver's error into words and classifies it.
    pub(crate) fn of_driver(server: &Arc<str>, doing: &'static str, error: &mongodb::error::Error) -> Self {
        let code = code(error);
        Self::Command {
            server: server.clone(),
            doing,
            reason: describe(error),
            code,
            again: error.contains_label(mongodb::error::TRANSIENT_TRANSACTION_ERROR),
            unsure: error.contains_label(mongodb::error::UNKNOWN_TRANSACTION_COMMIT_RESULT),
            failure: classify(error, code),
        }
    }
}

/// Server error codes, as in `error_codes.yml` of the server's source.
pub(crate) mod codes {
    pub(crate) const UNAUTHORIZED: i32 = 13;
    pub(crate) const NAMESPACE_EXISTS: i32 = 48;
    pub(crate) const DUPLICATE_KEY: i32 = 11000;
    pub(crate) const CHANGE_STREAM_FATAL: i32 = 280;
    pub(crate) const INVALID_RESUME_TOKEN: i32 = 260;
    pub(crate) const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
    pub(crate) const CAPPED_POSITION_LOST: i32 = 136;
    pub(crate) const SNAPSHOT_TOO_OLD: i32 = 239;
    pub(crate) const SNAPSHOT_UNAVAILABLE: i32 = 246;
}

/// Of these codes, in the order of `error_codes.yml`: bad value, failed to parse, type mismatch, the three of field names and `_id`,
/// an `_id` that would change, a validator, a document or a command or an index key that is too large.
const REFUSALS: [i32; 10] = [2, 9, 14, 52, 53, 57, 66, 121, 10334, 17280];

fn classify(error: &mongodb::error::Error, code: Option<i32>) -> Failure {
    use codes::{CAPPED_POSITION_LOST, CHANGE_STREAM_HISTORY_LOST, UNAUTHORIZED};
    // Authentication failed, user not found, wrong Atlas credentials; change streams on a standalone, a view, a system
    // collection.
    const NEED_SOMEBODY: [i32; 7] = [18, 11, 8000, 40573, 166, 73, UNAUTHORIZED];
    // A primary steps down, recovers, shuts down, or there is none.
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

/// The error in words, without the reply that the driver keeps with it.
fn describe(error: &mongodb::error::Error) -> String {
    use mongodb::error::WriteFailure;
    let text = match error.kind.as_ref() {
        ErrorKind::Command(command) => format!("{} ({}): {}", command.code_name, command.code, command.message),
        ErrorKind::Write(WriteFailure::WriteError(write)) => format!("error {}: {}", write.code, write.message),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
            format!("{} ({}): {}", concern.code_name, concern.code, concern.message)
        }
        // Its message quotes the Display of the error that cleared the pool.
        ErrorKind::ConnectionPoolCleared { .. } => "the connection was closed after an error of another one".to_owned(),
        kind => kind.to_string(),
    };
    shorten(&text)
}

/// At most so many characters that a line of the log stays a line.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 400;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
