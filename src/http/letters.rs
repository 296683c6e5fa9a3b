//! `GET /api/v1/dead-letters`, `POST /api/v1/spokes/{zone}/dead-letters/{retry,drop}`

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::Value;

use super::{Sources, answer, error, selection};
use crate::actors::commands::{Letters, Refused};
use crate::link::letters::{LetterAction, Request, Which};

/// Dead letters named in one request, at most.
const MOST_IDS: usize = 10_000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chosen {
    /// `_id`s as relaxed extended JSON; without the field, all dead letters of the spoke.
    ids: Option<Vec<Value>>,
}

/// Dead letters in one answer, at most.
const PAGE: usize = 1_000;

/// A page of the dead letters, in the order of zone and time.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only letters of this spoke.
    zone: Option<String>,
    /// Letters to pass over.
    #[serde(default)]
    offset: usize,
    /// Most letters in the answer, at most [`PAGE`].
    limit: Option<usize>,
}

/// Answers with a page of the letters. `X-Total-Count` says how many there are.
pub(super) async fn list(wanted: web::Query<Wanted>, sources: web::Data<Sources>) -> HttpResponse {
    let letters = sources.board.letters(wanted.zone.as_deref());
    let total = letters.len().to_string();
    let limit = wanted.limit.unwrap_or(PAGE).min(PAGE);
    let page: Vec<_> = letters.into_iter().skip(wanted.offset).take(limit).collect();
    HttpResponse::Ok().insert_header(("x-total-count", total)).json(page)
}

pub(super) async fn attend(
    path: web::Path<(String, String)>,
    body: web::Bytes,
    sources: web::Data<Sources>,
) -> HttpResponse {
    let (zone, action) = path.into_inner();
    let Some(action) = LetterAction::named(&action) else {
        return error(&mut HttpResponse::NotFound(), &format!("{action:?} is neither retry nor drop"));
    };
    let which = match selection::<Chosen>(&body) {
        Ok(Chosen { ids: Some(ids) }) if ids.len() > MOST_IDS => {
            let message = format!("name at most {MOST_IDS} dead letters in one request, or no ids for all");
            return error(&mut HttpResponse::BadRequest(), &message);
        }
        Ok(Chosen { ids: Some(ids) }) => Which::Shown(ids.into_iter().collect()),
        Ok(Chosen { ids: None }) => Which::All,
        Err(reason) => {
            return error(&mut HttpResponse::BadRequest(), &format!("the body is not {{\"ids\": […]}}: {reason}"));
        }
    };
    let letters = Letters { zone: zone.clone(), request: Request { action, which } };
    answer(&zone, sources.coordinator.send(letters).await.unwrap_or(Err(Refused::Stopping)))
}
