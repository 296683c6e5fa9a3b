//! `GET /api/v1/logs?actor=DFW/reader&level=info&follow=true`, `GET /api/v1/logs/actors`, `POST /api/v1/logs/level`

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use super::{Sources, error};
use crate::observe::logs::streams::News;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Name of an actor [default: all actors].
    actor: Option<String>,
    /// Least level of the lines [default: `trace`].
    level: Option<String>,
    /// True for an endless answer that continues with new lines.
    #[serde(default)]
    follow: bool,
}

pub(super) async fn read(selection: web::Query<Query>, sources: web::Data<Sources>) -> HttpResponse {
    let Query { actor, level, follow } = selection.into_inner();
    let Ok(level) = level.as_deref().unwrap_or("trace").parse::<Level>() else { return wrong_level() };
    let streams = &sources.logs.streams;
    let stream = match actor {
        None => streams.all().clone(),
        Some(actor) => match streams.get(&actor) {
            Some(stream) => stream,
            None => return error(&mut HttpResponse::NotFound(), &format!("there is no actor {actor}")),
        },
    };
    let mut response = HttpResponse::Ok();
    response.content_type("application/x-ndjson");
    if !follow {
        return response.body(render(&stream.after(0), level));
    }
    let lines = stream::unfold(0, move |read| {
        let stream = stream.clone();
        async move {
            let news = stream.next(read).await;
            Some((Ok::<_, std::convert::Infallible>(render(&news, level)), news.read))
        }
    });
    response.streaming(lines)
}

/// A JSON object per log line. `{"missed": N}` comes first if the caller was too slow for N lines.
fn render(news: &News, level: Level) -> Bytes {
    let mut text = String::new();
    if news.missed > 0 {
        text += &serde_json::json!({ "missed": news.missed }).to_string();
        text.push('\n');
    }
    for line in news.lines.iter().filter(|line| line.level <= level) {
        text += &line.to_json().to_string();
        text.push('\n');
    }
    text.into()
}

pub(super) async fn actors(sources: web::Data<Sources>) -> HttpResponse {
    HttpResponse::Ok().json(sources.logs.streams.actors())
}

/// A new least level for an actor, or for all actors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LevelChange {
    /// Name of an actor [default: all actors].
    actor: Option<String>,
    level: String,
}

pub(super) async fn set_level(wanted: web::Json<LevelChange>, sources: web::Data<Sources>) -> HttpResponse {
    let Ok(level) = wanted.level.parse::<LevelFilter>() else { return wrong_level() };
    // Only for actors that exist, so that requests fill no memory.
    if let Some(actor) = wanted.actor.as_deref().filter(|actor| sources.logs.streams.get(actor).is_none()) {
        return error(&mut HttpResponse::NotFound(), &format!("there is no actor {actor}"));
    }
    sources.logs.levels.set(wanted.actor.as_deref(), level);
    HttpResponse::Accepted().json(serde_json::json!({ "status": "accepted" }))
}

fn wrong_level() -> HttpResponse {
    error(&mut HttpResponse::BadRequest(), "the level must be one of error, warn, info, debug, trace")
}
