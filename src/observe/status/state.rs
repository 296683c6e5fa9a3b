//! What a link, or the hub's stream, is doing.

use serde::Serialize;

/// What a link, or the hub's stream, is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It looks for its servers.
    #[default]
    Connecting,
    /// It copies what was there before it began.
    InitialSync,
    /// It follows the change stream.
    Streaming,
    /// It follows a change stream of its own, to where the others are.
    CatchingUp,
    /// It compares both sides, because its place in the change stream is gone, or an operator wants it.
    Reconciling,
    /// It waits before it starts again.
    Backoff,
    /// Somebody paused it.
    Paused,
    /// It cannot work before somebody changes something, or failed again and again. It is tried once a minute.
    Halted,
}

impl State {
    /// As it is said everywhere.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::InitialSync => "initial_sync",
            Self::Streaming => "streaming",
            Self::CatchingUp => "catching_up",
            Self::Reconciling => "reconciling",
            Self::Backoff => "backoff",
            Self::Paused => "paused",
            Self::Halted => "halted",
        }
    }
}

/// Of two links' states, the one that says more about the spoke.
pub(super) fn worse(one: State, other: State) -> State {
    let rank = |state: State| match state {
        State::Streaming => 0,
        State::CatchingUp => 1,
        State::InitialSync => 2,
        State::Reconciling => 3,
        State::Connecting => 4,
        State::Backoff => 5,
        State::Paused => 6,
        State::Halted => 7,
    };
    if rank(one) >= rank(other) { one } else { other }
}
