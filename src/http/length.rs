//! Requests without a known length.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::TRANSFER_ENCODING;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage, HttpResponse};

use super::error;

/// Middleware: refuses a request in chunks with 411. The server would wait without a limit for the rest of a body that
/// nobody reads; while the answer holds the unread body, the server closes the connection after the answer instead.
pub(super) async fn known<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<Refusal, B>>, Error> {
    if !request.headers().contains_key(TRANSFER_ENCODING) {
        return next.call(request).await.map(ServiceResponse::map_into_right_body);
    }
    let payload = request.take_payload();
    let mut response = HttpResponse::LengthRequired();
    let response = error(response.force_close(), "say the length of the body: chunks are not read");
    let response = response.map_body(|_, text| EitherBody::left(Refusal { text, _unread: payload }));
    Ok(request.into_response(response))
}

/// An answer that holds the unread body of its request.
pub(super) struct Refusal {
    text: BoxBody,
    _unread: Payload,
}

impl MessageBody for Refusal {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.text.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.text).poll_next(context)
    }
}
