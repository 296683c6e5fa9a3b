//! The HTTP interface.
//!
//! - [`guard`]: access control; [`length`]: requests whose body has no known length
//! - [`page`]: the dashboard
//! - [`spokes`]: commands for a spoke; [`letters`]: dead letters
//! - [`logs`]: the actors' log streams; [`verify`]: verifications
//!
//! GET requests read the status board and the log streams, and never wait for a MongoDB server. Commands are messages
//! to the coordinator; only log levels change directly.

mod guard;
mod length;
mod letters;
mod logs;
mod page;
mod spokes;
mod verify;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::Addr;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::http::KeepAlive;
use actix_web::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::{DefaultHeaders, Next, from_fn};
use actix_web::{App, Error, HttpRequest, HttpResponse, HttpServer, web};
use serde::de::DeserializeOwned;

use crate::actors::commands::Refused;
use crate::actors::coordinator::Coordinator;
use crate::config::Http;
use crate::observe::logs::Logs;
use crate::observe::metrics;
use crate::observe::status::Board;

/// Longest body of a request, in bytes: some ten thousand `_id`s of dead letters.
const MOST_BODY_BYTES: usize = 262_144;

/// Connections served at the same time. Further ones wait, so that requests take no descriptors from the links.
const MOST_CONNECTIONS: usize = 256;

#[derive(Clone)]
struct Sources {
    board: Arc<Board>,
    coordinator: Addr<Coordinator>,
    logs: Logs,
}

/// Starts the HTTP server on a listener.
pub(crate) fn start(
    http: &Http,
    listener: TcpListener,
    board: Arc<Board>,
    coordinator: Addr<Coordinator>,
    logs: Logs,
) -> std::io::Result<Server> {
    let sources = Sources { board, coordinator, logs };
    let guard = guard::Guard::new(http.token.clone());
    // `/healthz` and `/readyz` need no token, because orchestrators probe without credentials. All other paths need the
    // token.
    let app = move || {
        let api = web::scope("/api/v1")
            .route("/status", web::get().to(status))
            .route("/history", web::get().to(history))
            .route("/logs", web::get().to(logs::read))
            .route("/logs/actors", web::get().to(logs::actors))
            .route("/logs/level", web::post().to(logs::set_level))
            .route("/verify", web::get().to(verify::last))
            .route("/verify", web::post().to(verify::begin))
            .route("/dead-letters", web::get().to(letters::list))
            .route("/spokes/{zone}/dead-letters/{wanted}", web::post().to(letters::attend))
            .route("/spokes/{zone}/{action}", web::post().to(spokes::act))
            .default_service(web::to(unknown));
        let guarded = web::scope("")
            .wrap(from_fn(guard::check))
            .route("/", web::get().to(page::index))
            .route("/page/{name}", web::get().to(page::part))
            .route("/metrics", web::get().to(metrics))
            .service(api)
            .default_service(web::to(unknown));
        // Answers hold the state of the databases: no cache keeps them, and no browser guesses their type.
        let headers = DefaultHeaders::new().add((CACHE_CONTROL, "no-store")).add((X_CONTENT_TYPE_OPTIONS, "nosniff"));
        App::new()
            .app_data(web::Data::new(sources.clone()))
            .app_data(web::Data::new(guard.clone()))
            .app_data(web::PayloadConfig::new(MOST_BODY_BYTES))
            .app_data(web::JsonConfig::default().limit(MOST_BODY_BYTES))
            .wrap(from_fn(in_json))
            .wrap(from_fn(length::known))
            .wrap(headers)
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .service(guarded)
    };
    let server = HttpServer::new(app).workers(1).max_connections(MOST_CONNECTIONS);
    // One request a connection: the time limits hold for a connection's first request only.
    let server = server.keep_alive(KeepAlive::Disabled);
    let server = server.disable_signals().shutdown_timeout(1).listen(listener)?;
    Ok(server.run())
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "status": "alive" }))
}

async fn readyz(sources: web::Data<Sources>) -> HttpResponse {
    let missing = sources.board.view().not_ready();
    if missing.is_empty() {
        HttpResponse::Ok().json(serde_json::json!({ "status": "ready" }))
    } else {
        HttpResponse::ServiceUnavailable().json(serde_json::json!({ "status": "not ready", "missing": missing }))
    }
}

async fn status(sources: web::Data<Sources>) -> HttpResponse {
    HttpResponse::Ok().json(sources.board.view())
}

async fn history(sources: web::Data<Sources>) -> HttpResponse {
    HttpResponse::Ok().json(sources.board.history())
}

async fn metrics(sources: web::Data<Sources>) -> HttpResponse {
    match metrics::render(&sources.board, sources.logs.lost.load(Ordering::Relaxed)) {
        Ok(text) => HttpResponse::Ok().content_type(metrics::CONTENT_TYPE).body(text),
        Err(failed) => error(&mut HttpResponse::InternalServerError(), &failed.to_string()),
    }
}

async fn unknown(request: HttpRequest) -> HttpResponse {
    error(&mut HttpResponse::NotFound(), &format!("there is no {} {}", request.method(), request.path()))
}

/// Middleware: answers to requests that cannot be read get the same format as all others.
async fn in_json<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let answered = next.call(request).await?;
    let Some(reason) = answered.response().error() else { return Ok(answered.map_into_left_body()) };
    let response = error(&mut HttpResponse::build(answered.status()), &reason.to_string());
    Ok(answered.into_response(response).map_into_right_body())
}

/// Turns the coordinator's reply about a spoke into an HTTP answer: 202, 404, 409, or 503 during a shutdown.
fn answer(zone: &str, done: Result<(), Refused>) -> HttpResponse {
    match done {
        Ok(()) => HttpResponse::Accepted().json(serde_json::json!({ "status": "accepted" })),
        Err(Refused::Unknown) => error(&mut HttpResponse::NotFound(), &format!("there is no spoke {zone}")),
        Err(Refused::Senseless(reason)) => error(&mut HttpResponse::Conflict(), &format!("spoke {zone}: {reason}")),
        Err(Refused::Stopping) => error(&mut HttpResponse::ServiceUnavailable(), "the program is stopping"),
    }
}

/// Reads the body of a request that selects something. Without a body, everything is selected; anything but a JSON
/// object is an error, so that no mistake selects everything.
fn selection<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, serde_json::Error> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body)?;
    serde_json::from_value(serde_json::Value::Object(object))
}

/// An error answer, in the same format for all paths.
fn error(response: &mut actix_web::HttpResponseBuilder, message: &str) -> HttpResponse {
    response.json(serde_json::json!({ "error": message }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Choice {
        ids: Option<Vec<i32>>,
    }

    #[test]
    fn only_no_body_or_an_object_without_a_choice_selects_everything() {
        for everything in ["", "{}"] {
            assert_eq!(selection::<Choice>(everything.as_bytes()).expect(everything), Choice::default());
        }
        assert_eq!(selection::<Choice>(br#"{"ids": [1]}"#).expect("ids"), Choice { ids: Some(vec![1]) });
        for mistake in ["[]", "null", "7", "\"\"", "{\"id\": 1}", "{} {}", " "] {
            assert!(selection::<Choice>(mistake.as_bytes()).is_err(), "{mistake}");
        }
    }
}
