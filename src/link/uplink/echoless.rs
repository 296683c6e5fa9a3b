//! A spoke's change stream without our own changes.

use tokio::sync::mpsc;

use crate::mongo::error::Error;
use crate::mongo::metadata::sessions::Tags;
use crate::mongo::server::Server;
use crate::mongo::tail::{Selection, Tail};
use crate::rules::position::Position;
use crate::rules::reply::{EventRef, Reply};

/// Number of echoes after which the stream is opened again without echoes. Echoes come through if our own writer at the
/// spoke got a new session after the stream was opened.
const ECHOES: usize = 1_000;

/// The stream. The server leaves out all sessions registered before the stream was opened.
pub(super) struct Echoless {
    server: Server,
    tail: Tail,
    tags: Tags,
    echoes: usize,
}

impl Echoless {
    pub(super) async fn open(server: &Server, position: Option<&Position>) -> Result<Self, Error> {
        let tags = Tags::load(server).await?;
        let selection = Selection { without: tags.ours(), ..Selection::default() };
        let tail = Tail::open(server, position, selection).await?;
        Ok(Self { server: server.clone(), tail, tags, echoes: 0 })
    }

    /// Sends every reply, until the stream fails.
    pub(super) async fn read_into(mut self, sender: mpsc::Sender<Reply>) -> Error {
        loop {
            match self.next().await {
                // No receiver: this task is about to be aborted.
                Ok(reply) => drop(sender.send(reply).await),
                Err(error) => return error,
            }
        }
    }

    async fn next(&mut self) -> Result<Reply, Error> {
        let reply = self.tail.next().await?;
        self.tags.look_up(reply.events().filter_map(|event| event.session())).await?;
        let is_echo = |event: EventRef<'_>| event.session().is_some_and(|session| self.tags.get(&session).is_some());
        let echoes = reply.events().filter(|event| is_echo(*event)).count();
        if echoes == 0 {
            return Ok(reply);
        }
        let others = (0..reply.len()).filter(|&index| !is_echo(reply.event(index)));
        let reply = reply.excerpt(others, reply.end().clone());
        self.echoes += echoes;
        if self.echoes > ECHOES {
            *self = Self::open(&self.server, Some(reply.end())).await?;
        }
        Ok(reply)
    }
}
