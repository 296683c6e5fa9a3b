//! What the coordinator tells the membership, which takes it up at its next round.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::membership::Member;
use super::wishes::Asked;
use crate::link::tenure::Tenure;
use crate::mongo::metadata::members::Card;
use crate::mongo::metadata::wishes::Wish;
use crate::rules::names::Zone;

/// The answer to a wish: the reason if it was refused.
pub(crate) type Answer = Result<(), String>;

/// Shared by the coordinator and the membership's loop.
pub(crate) struct Desk {
    /// The leases, as the links see them.
    pub(crate) tenure: Arc<Tenure>,
    /// What the loop knows. It outlives a loop that fails.
    pub(super) member: tokio::sync::Mutex<Member>,
    said: Mutex<Said>,
    news: Notify,
}

/// What was said and is not taken up yet; some of it lasts.
#[derive(Default)]
pub(super) struct Said {
    /// The card, after a change of the configuration.
    pub(super) card: Option<Card>,
    /// The zones of the spokes that have an actor.
    running: BTreeSet<Zone>,
    is_leaving: bool,
    /// Pauses to save, in the order of the operator's commands, and whom to tell.
    pub(super) pauses: VecDeque<(Zone, bool, oneshot::Sender<bool>)>,
    /// Wishes for spokes of other members, and whom to answer.
    pub(super) wishes: Vec<Asked>,
}

impl Desk {
    pub(crate) fn new(card: Card) -> Self {
        Self {
            tenure: Arc::default(),
            member: tokio::sync::Mutex::new(Member::new(card)),
            said: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// The process has another configuration.
    pub(crate) fn set_card(&self, card: Card) {
        self.say(|said| said.card = Some(card));
    }

    /// A spoke has an actor from now on. Nothing waits for that.
    pub(crate) fn has_started(&self, zone: Zone) {
        self.said().running.insert(zone);
    }

    /// A spoke has no actor any more: its lease can be given up.
    pub(crate) fn has_stopped(&self, zone: &str) {
        self.say(|said| {
            said.running.remove(zone);
        });
    }

    /// The process ends: every lease is given up as soon as its spoke has stopped.
    pub(crate) fn leave(&self) {
        self.say(|said| said.is_leaving = true);
        self.tenure.end();
    }

    /// Saves that an operator has paused or resumed a spoke. The receiver hears when the hub has it, or false if
    /// another process runs the spoke by now.
    pub(crate) fn pause(&self, zone: Zone, is_paused: bool) -> oneshot::Receiver<bool> {
        let (done, saved) = oneshot::channel();
        self.say(|said| said.pauses.push_back((zone, is_paused, done)));
        saved
    }

    /// Passes a wish on to the member that runs the spoke.
    pub(crate) fn wish(&self, wish: Wish) -> oneshot::Receiver<Answer> {
        let (done, answer) = oneshot::channel();
        self.say(|said| said.wishes.push(Asked::new(wish, done)));
        answer
    }

    fn say(&self, what: impl FnOnce(&mut Said)) {
        what(&mut self.said());
        self.news.notify_one();
    }

    pub(super) fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_running(&self, zone: &Zone) -> bool {
        self.said().running.contains(zone)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.said().is_leaving
    }

    /// Waits for something new.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}
