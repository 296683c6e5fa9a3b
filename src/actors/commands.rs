//! Commands of operators for a spoke: carried out here, or passed on to the process that runs the spoke.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::coordinator::Coordinator;
use super::spoke::{self, Action};
use crate::cluster::membership::CarryOut;
use crate::link::letters::{LetterAction, Request, Which};
use crate::mongo::metadata::wishes::Wish;
use crate::rules::names::{Direction, Zone};

/// Time for the process that runs a spoke to answer a command, less than the time that the commands wait.
const WISH_LIMIT: Duration = Duration::from_secs(9);

/// Time for the hub to keep a pause. The spoke is paused in any case.
const PAUSE_LIMIT: Duration = Duration::from_secs(2);

/// The answer to an operator between the two actors of a spoke whose configuration has changed.
const RELOADING: &str = "it is being started with another configuration: try again";

/// Sent by the HTTP interface when an operator pauses, resumes, restarts or resyncs a spoke.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct ActOn {
    pub(crate) zone: String,
    pub(crate) action: Action,
}

/// Sent by the HTTP interface when an operator retries or drops dead letters.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct Letters {
    pub(crate) zone: String,
    pub(crate) request: Request,
}

/// The reason why the coordinator refuses an operator's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No spoke has the zone.
    Unknown,
    /// The present state or configuration does not allow the request; the text says why.
    Senseless(String),
    /// The coordinator is gone: the program stops.
    Stopping,
}

impl Handler<ActOn> for Coordinator {
    type Result = ResponseActFuture<Self, Result<(), Refused>>;

    fn handle(&mut self, ActOn { zone, action }: ActOn, _: &mut Self::Context) -> Self::Result {
        if let Some(passing_on) = self.pass_on(&zone, action.name(), None) {
            return Box::pin(passing_on.into_actor(self));
        }
        let spoke = self.spokes.get(&zone).cloned();
        let is_configured = self.configured(&zone).is_some();
        // The future holds only the spoke's address, so the coordinator may handle other messages in the meantime.
        let acting = async move {
            let absent = || if is_configured { Refused::Senseless(RELOADING.to_owned()) } else { Refused::Unknown };
            match spoke.ok_or_else(absent)?.send(spoke::Act(action)).await {
                Ok(done) => done.map_err(Refused::Senseless),
                Err(_) => Err(absent()),
            }
        };
        Box::pin(acting.into_actor(self).then(move |done, coordinator, _| {
            let saved = match (&done, action) {
                (Ok(()), Action::Pause | Action::Resume) => Some(coordinator.has_paused(&zone, action)),
                _ => None,
            };
            let saving = async move {
                let Some(saved) = saved else { return done };
                match tokio::time::timeout(PAUSE_LIMIT, saved).await {
                    Ok(Ok(true)) => done,
                    Ok(Ok(false)) => {
                        Err(Refused::Senseless("another process has taken the spoke over: try again".to_owned()))
                    }
                    _ => {
                        tracing::warn!(?action, "the hub does not keep it yet: it is kept as soon as the hub answers");
                        done
                    }
                }
            };
            saving.into_actor(coordinator)
        }))
    }
}

impl Coordinator {
    /// Remembers a pause or its end, here and at the hub. The receiver hears when the hub has it, or false if another
    /// process runs the spoke by now.
    fn has_paused(&mut self, zone: &str, action: Action) -> oneshot::Receiver<bool> {
        let is_paused = action == Action::Pause;
        if is_paused {
            self.paused.insert(zone.to_owned());
        } else {
            self.paused.remove(zone);
        }
        self.handles.desk.pause(Zone::new(zone), is_paused)
    }

    /// Passes an operator's request on to the process that runs the spoke. `None` if this process does, or nobody has
    /// the spoke.
    fn pass_on(
        &self,
        zone: &str,
        action: &str,
        ids: Option<String>,
    ) -> Option<impl Future<Output = Result<(), Refused>> + use<>> {
        if self.runs(zone) || self.configured(zone).is_none() {
            return None;
        }
        tracing::info!(zone, action, "passed on to the process that runs the spoke");
        let wish = Wish { id: bson::Uuid::new().to_string(), zone: zone.to_owned(), action: action.to_owned(), ids };
        let answer = self.handles.desk.wish(wish);
        Some(async move {
            match tokio::time::timeout(WISH_LIMIT, answer).await {
                Ok(Ok(answer)) => answer.map_err(Refused::Senseless),
                Ok(Err(_)) => Err(Refused::Stopping),
                Err(_) => Err(Refused::Senseless("another process runs it, and the hub does not answer".to_owned())),
            }
        })
    }
}

impl Handler<Letters> for Coordinator {
    type Result = ResponseActFuture<Self, Result<(), Refused>>;

    fn handle(&mut self, Letters { zone, request }: Letters, _: &mut Self::Context) -> Self::Result {
        let ids = match &request.which {
            Which::Shown(ids) => serde_json::to_string(ids).ok(),
            Which::All | Which::One(_) => None,
        };
        if let Some(passing_on) = self.pass_on(&zone, request.action.name(), ids) {
            return Box::pin(passing_on.into_actor(self));
        }
        Box::pin(std::future::ready(self.ask_for_letters(&zone, &request)).into_actor(self))
    }
}

impl Coordinator {
    fn ask_for_letters(&self, zone: &str, request: &Request) -> Result<(), Refused> {
        let spoke = self.handles.get(zone).ok_or(Refused::Unknown)?;
        let asked = Direction::BOTH.map(|link| spoke.pair.letters(link).ask(request.clone()));
        if asked.contains(&true) {
            Ok(())
        } else {
            Err(Refused::Senseless("too many requests wait for the spoke's links already: they go on first".to_owned()))
        }
    }
}

impl Handler<CarryOut> for Coordinator {
    type Result = ResponseActFuture<Self, Result<(), String>>;

    fn handle(&mut self, CarryOut(wish): CarryOut, context: &mut Self::Context) -> Self::Result {
        let here = context.address();
        let doing = async move {
            let zone = wish.zone.clone();
            let done = match (Action::named(&wish.action), LetterAction::named(&wish.action)) {
                (Some(action), _) => here.send(ActOn { zone, action }).await,
                (None, Some(action)) => {
                    let ids = wish.ids.as_deref().map(serde_json::from_str).transpose();
                    let which = match ids {
                        Ok(ids) => ids.map_or(Which::All, Which::Shown),
                        Err(_) => return Err("the wish cannot be read".to_owned()),
                    };
                    here.send(Letters { zone, request: Request { action, which } }).await
                }
                (None, None) => return Err(format!("this version knows no {:?}", wish.action)),
            };
            match done.unwrap_or(Err(Refused::Stopping)) {
                Ok(()) => Ok(()),
                Err(Refused::Senseless(reason)) => Err(reason),
                Err(Refused::Unknown) => Err("its configuration does not have the spoke".to_owned()),
                Err(Refused::Stopping) => Err("the process that runs it is stopping: try again".to_owned()),
            }
        };
        Box::pin(doing.into_actor(self))
    }
}
