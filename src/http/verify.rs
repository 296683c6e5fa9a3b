//! `POST /api/v1/verify`, `GET /api/v1/verify`

use actix_web::{HttpResponse, web};

use super::{Sources, error, selection};
use crate::actors::commands::Refused;
use crate::actors::verification::Verify;
use crate::verify::scope::ScopeRequest;

pub(super) async fn begin(body: web::Bytes, sources: web::Data<Sources>) -> HttpResponse {
    let wanted = match selection::<ScopeRequest>(&body) {
        Ok(wanted) => wanted,
        Err(reason) => return error(&mut HttpResponse::BadRequest(), &format!("invalid body: {reason}")),
    };
    match sources.coordinator.send(Verify(wanted)).await.unwrap_or(Err(Refused::Stopping)) {
        Ok(()) => HttpResponse::Accepted().json(serde_json::json!({ "status": "accepted" })),
        Err(Refused::Unknown) => error(&mut HttpResponse::NotFound(), "nothing to compare"),
        Err(Refused::Senseless(reason)) => error(&mut HttpResponse::Conflict(), &reason),
        Err(Refused::Stopping) => error(&mut HttpResponse::ServiceUnavailable(), "the program is stopping"),
    }
}

/// Answers with the whole report of the last verification.
pub(super) async fn last(sources: web::Data<Sources>) -> HttpResponse {
    match sources.board.verification().report() {
        Some(report) => HttpResponse::Ok().content_type("application/json").body(report),
        None => error(&mut HttpResponse::NotFound(), "no verification since the start of the process"),
    }
}
