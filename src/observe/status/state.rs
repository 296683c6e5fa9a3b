//! The states of a link, or of the hub's change stream.

use serde::Serialize;

/// The state of a link, or of the hub's change stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    #[default]
    Connecting,
    /// Copies the documents that existed before the link began.
    InitialSync,
    /// Follows the change stream.
    Streaming,
    /// Follows a separate change stream up to the position of the shared stream.
    CatchingUp,
    /// Compares both sides, because the place in the change stream is lost or an operator asked for a comparison.
    Reconciling,
    /// Waits before the next start.
    Backoff,
    Paused,
    /// Another process of the cluster runs the spoke.
    Standby,
    /// Cannot work until an operator acts, or has failed repeatedly. Tries once a minute.
    Halted,
}

impl State {
    /// Name of the state in the API, in output and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::InitialSync => "initial_sync",
            Self::Streaming => "streaming",
            Self::CatchingUp => "catching_up",
            Self::Reconciling => "reconciling",
            Self::Backoff => "backoff",
            Self::Paused => "paused",
            Self::Standby => "standby",
            Self::Halted => "halted",
        }
    }
}

/// The state of a spoke: the worse state of its two links.
pub(super) fn worse(one: State, other: State) -> State {
    let rank = |state: State| match state {
        State::Streaming => 0,
        State::CatchingUp => 1,
        State::InitialSync => 2,
        State::Reconciling => 3,
        State::Connecting => 4,
        State::Backoff => 5,
        State::Paused => 6,
        State::Standby => 7,
        State::Halted => 8,
    };
    if rank(one) >= rank(other) { one } else { other }
}
