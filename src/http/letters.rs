//! `GET /api/v1/dead-letters`, `POST /api/v1/spokes/{zone}/dead-letters/{retry,drop}`

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::Value;

use super::{Sources, answer, error, selection};
use crate::actors::coordinator::{Letters, Refused};
use crate::link::letters::{LetterAction, Request};

/// Dead letters named in one request, at most.
const MOST_IDS: usize = 10_000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chosen {
    /// `_id`s as relaxed extended JSON; without the field, all dead letters of the spoke.
    ids: Option<Vec<Value>>,
}

pub(super) async fn list(sources: web::Data<Sources>) -> HttpResponse {
    HttpResponse::Ok().json(sources.board.letters())
}

pub(super) async fn attend(
    path: web::Path<(String, String)>,
    body: web::Bytes,
    sources: web::Data<Sources>,
) -> HttpResponse {
    let (zone, action) = path.into_inner();
    let action = match action.as_str() {
        "retry" => LetterAction::Retry,
        "drop" => LetterAction::Drop,
        other => return error(&mut HttpResponse::NotFound(), &format!("{other:?} is neither retry nor drop")),
    };
    let ids = match selection::<Chosen>(&body) {
        Ok(Chosen { ids: Some(ids) }) if ids.len() > MOST_IDS => {
            let message = format!("name at most {MOST_IDS} dead letters in one request, or no ids for all");
            return error(&mut HttpResponse::BadRequest(), &message);
        }
        Ok(selection) => selection.ids,
        Err(reason) => {
            return error(&mut HttpResponse::BadRequest(), &format!("the body is not {{\"ids\": […]}}: {reason}"));
        }
    };
    let letters = Letters { zone: zone.clone(), request: Request { action, ids } };
    answer(&zone, sources.coordinator.send(letters).await.unwrap_or(Err(Refused::Stopping)))
}
