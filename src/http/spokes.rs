//! `POST /api/v1/spokes/{zone}/{pause,resume,restart,resync}`

use actix_web::{HttpResponse, web};

use super::{Sources, answer, error};
use crate::actors::commands::{ActOn, Refused};
use crate::actors::spoke::Action;

pub(super) async fn act(path: web::Path<(String, String)>, sources: web::Data<Sources>) -> HttpResponse {
    let (zone, action) = path.into_inner();
    let Some(action) = Action::named(&action) else {
        let message = format!("{action:?} is none of pause, resume, restart, resync");
        return error(&mut HttpResponse::NotFound(), &message);
    };
    answer(
        &zone,
        sources.coordinator.send(ActOn { zone: zone.clone(), action }).await.unwrap_or(Err(Refused::Stopping)),
    )
}
