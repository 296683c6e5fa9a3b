//! `POST /api/v1/spokes/{zone}/{pause,resume,restart,resync}`

use actix_web::{HttpResponse, web};

use super::{Sources, error};
use crate::actors::coordinator::{ActOn, Refused};
use crate::actors::spoke::Action;

pub(super) async fn act(path: web::Path<(String, String)>, sources: web::Data<Sources>) -> HttpResponse {
    let (zone, action) = path.into_inner();
    let action = match action.as_str() {
        "pause" => Action::Pause,
        "resume" => Action::Resume,
        "restart" => Action::Restart,
        "resync" => Action::Resync,
        other => {
            let message = format!("{other:?} is none of pause, resume, restart, resync");
            return error(&mut HttpResponse::NotFound(), &message);
        }
    };
    match sources.coordinator.send(ActOn { zone: zone.clone(), action }).await {
        Ok(Ok(())) => HttpResponse::Accepted().json(serde_json::json!({ "status": "accepted" })),
        Ok(Err(Refused::Unknown)) => error(&mut HttpResponse::NotFound(), &format!("there is no spoke {zone}")),
        Ok(Err(Refused::Senseless(reason))) => error(&mut HttpResponse::Conflict(), &format!("spoke {zone}: {reason}")),
        Err(_) => error(&mut HttpResponse::ServiceUnavailable(), "the program is stopping"),
    }
}
