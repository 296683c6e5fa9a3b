//! What operators want of spokes that another process runs: passing a wish on, carrying it out, and hearing the answer.

use std::time::{Duration, Instant};

use actix::Recipient;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::desk::Answer;
use super::membership::CarryOut;
use super::round::Round;
use crate::mongo::error::Error;
use crate::mongo::metadata::wishes::{self, Wish};
use crate::mongo::server::Server;

/// Time that the holder of a spoke has to answer a wish, less than the time that the commands wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// Interval of the looks for an answer.
pub(super) const ANSWER_INTERVAL: Duration = Duration::from_millis(100);

/// A wish that another member has not answered yet.
pub(super) struct Asked {
    wish: Wish,
    /// The hub has the wish.
    is_made: bool,
    since: Instant,
    done: oneshot::Sender<Answer>,
}

impl Asked {
    pub(super) fn new(wish: Wish, done: oneshot::Sender<Answer>) -> Self {
        Self { wish, is_made: false, since: Instant::now(), done }
    }
}

impl Round<'_> {
    /// Passes new wishes on. True if there were any.
    pub(super) async fn make_wishes(&mut self) -> Result<bool, Error> {
        let mut has_new = false;
        // Nobody waits for an old one any more.
        let is_new = |asked: &&mut Asked| !asked.is_made && asked.since.elapsed() < ANSWER_LIMIT;
        for asked in self.member.asked.iter_mut().filter(is_new) {
            wishes::make(self.hub, &asked.wish).await?;
            (asked.is_made, has_new) = (true, true);
        }
        Ok(has_new)
    }

    /// Carries out what other members were asked for.
    pub(super) async fn carry_out_wishes(&mut self) -> Result<(), Error> {
        let open = wishes::open(self.hub).await?;
        self.member.carrying.retain(|id| open.iter().any(|wish| wish.id == *id));
        for wish in open {
            let zone = wish.zone.as_str();
            let is_mine = self.member.held.contains(zone) && !self.member.giving.contains(zone);
            if !is_mine || !self.member.carrying.insert(wish.id.clone()) {
                continue;
            }
            // A pause is carried out only when this loop has saved it, so the loop does not wait here.
            let (hub, carry_out) = (self.hub.clone(), self.superior.carry_out.clone());
            tokio::spawn(async move { carry_out_one(&hub, &carry_out, wish).await }.in_current_span());
        }
        Ok(())
    }

    /// Hears what other members have answered.
    pub(super) async fn hear_answers(&mut self) -> Result<(), Error> {
        let mut place = 0;
        while let Some(asked) = self.member.asked.get(place) {
            let answer = match wishes::answered(self.hub, &asked.wish.id).await? {
                Some(done) if done.is_empty() => Ok(()),
                Some(reason) => Err(reason),
                None if asked.since.elapsed() < ANSWER_LIMIT => {
                    place += 1;
                    continue;
                }
                None => Err("the process that runs it does not answer: try again".to_owned()),
            };
            wishes::forget(self.hub, &asked.wish.id).await?;
            if self.member.asked.remove(place).done.send(answer).is_err() {
                tracing::debug!("a wish is answered, and nobody waits for the answer any more");
            }
        }
        Ok(())
    }
}

async fn carry_out_one(hub: &Server, carry_out: &Recipient<CarryOut>, wish: Wish) {
    let id = wish.id.clone();
    let answer = match carry_out.send(CarryOut(wish)).await {
        Ok(Ok(())) => String::new(),
        Ok(Err(reason)) => reason,
        Err(_) => return,
    };
    if let Err(error) = wishes::answer(hub, &id, &answer).await {
        tracing::warn!(%error, "an operator's request is carried out, and the process that was asked does not know");
    }
}
