//! The HTTP interface. Every answer comes from the status board; nothing here waits for a server or an actor.

use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use secrecy::{ExposeSecret, SecretString};

use crate::config::Http;
use crate::observe::status::Board;

/// What the answers are made of.
#[derive(Clone)]
struct Sources {
    board: Arc<Board>,
    token: Option<SecretString>,
}

/// Starts to listen.
///
/// # Errors
/// If the address cannot be listened on.
pub fn start(http: &Http, board: Arc<Board>) -> std::io::Result<Server> {
    let sources = Sources { board, token: http.token.clone() };
    let app = move || {
        App::new()
            .app_data(web::Data::new(sources.clone()))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(readyz))
            .route("/api/v1/status", web::get().to(status))
            .default_service(web::to(unknown))
    };
    let server = HttpServer::new(app).workers(1).disable_signals().shutdown_timeout(1).bind(http.listen)?;
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

async fn status(request: HttpRequest, sources: web::Data<Sources>) -> HttpResponse {
    if !is_allowed(&request, sources.token.as_ref()) {
        return forbidden();
    }
    HttpResponse::Ok().json(sources.board.view())
}

async fn unknown(request: HttpRequest) -> HttpResponse {
    HttpResponse::NotFound().json(serde_json::json!({ "error": format!("there is no {}", request.path()) }))
}

/// True if the caller brings the token that the configuration asks for, if it asks for one.
fn is_allowed(request: &HttpRequest, token: Option<&SecretString>) -> bool {
    let Some(token) = token else { return true };
    let brought = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let brought = brought.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let expected = token.expose_secret();
    // Every byte is looked at, whatever comes before it.
    brought.len() == expected.len() && brought.bytes().zip(expected.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn forbidden() -> HttpResponse {
    HttpResponse::Unauthorized()
        .insert_header(("www-authenticate", "Bearer"))
        .json(serde_json::json!({ "error": "give the token of [http] as a bearer token" }))
}
