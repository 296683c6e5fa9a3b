//! Access control: requests need the token of `[http]`, and pages of other sites may change nothing.
//!
//! Without a token, only names of this machine are accepted as `Host`. A page of another site could otherwise read
//! everything, by a DNS server that gives the site's name the address 127.0.0.1 (DNS rebinding).

use std::net::IpAddr;
use std::time::Duration;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::http::header::{
    AUTHORIZATION, CACHE_CONTROL, HOST, HeaderMap, HeaderName, ORIGIN, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::uri::Authority;
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, web};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

use super::error;

#[derive(Clone)]
pub(super) struct Guard {
    token: Option<SecretString>,
}

impl Guard {
    pub(super) fn new(token: Option<SecretString>) -> Self {
        Self { token }
    }

    /// True if the request carries the configured token, or if no token is configured.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let brought = text(headers, &AUTHORIZATION).and_then(token_of).unwrap_or_default();
        let expected = token.expose_secret();
        // Compares all bytes even after a difference, so that the duration does not reveal how much of a guess is
        // right.
        brought.len() == expected.len()
            && brought.bytes().zip(expected.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

/// Longest time for a request that changes something, from its head to the answer.
const POST_TIME: Duration = Duration::from_secs(10);

/// Middleware: passes a request on, or refuses it with 401 (no token), 403 (a page of another site) or 408 (a body that
/// does not come).
pub(super) async fn check<B: MessageBody + 'static>(
    guard: web::Data<Guard>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let refusal = if !guard.knows(request.headers()) {
        let mut response = HttpResponse::Unauthorized();
        response.append_header((WWW_AUTHENTICATE, "Basic realm=\"spokesync\""));
        response.append_header((WWW_AUTHENTICATE, "Bearer"));
        Some(error(&mut response, "send the token of [http] as a bearer token, or as the password with any user name"))
    } else if guard.token.is_none() && !is_for_this_machine(request.headers()) {
        let message = "without a token in [http], only localhost, 127.0.0.1 and [::1] are accepted as Host";
        Some(error(&mut HttpResponse::Forbidden(), message))
    } else if request.method() != Method::GET && is_of_another_site(request.headers()) {
        Some(error(&mut HttpResponse::Forbidden(), "requests from pages of other sites are refused"))
    } else {
        None
    };
    match refusal {
        Some(response) => Ok(request.into_response(response).map_into_right_body()),
        None if request.method() == Method::GET => next.call(request).await.map(ServiceResponse::map_into_left_body),
        None => match tokio::time::timeout(POST_TIME, next.call(request)).await {
            Ok(answered) => answered.map(ServiceResponse::map_into_left_body),
            // The rest of the body would be taken for the next request.
            Err(late) => {
                let mut response = HttpResponse::RequestTimeout();
                response.insert_header((CACHE_CONTROL, "no-store")).insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"));
                let response = error(response.force_close(), "the request did not come within 10 s");
                Err(InternalError::from_response(late, response).into())
            }
        },
    }
}

/// The token in an `Authorization` header: a bearer token, or a password, because browsers can only ask for a password.
fn token_of(header: &str) -> Option<String> {
    if let Some(token) = header.strip_prefix("Bearer ") {
        return Some(token.to_owned());
    }
    let decoded = BASE64_STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(password.to_owned())
}

/// True if the request names this machine, by a name that no DNS server can give to another site.
fn is_for_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST);
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some(authority) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// True if a browser sends the request for a page of another site. Other clients do not send the headers
/// `Sec-Fetch-Site` and `Origin`, and pass.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
    let is_cross = site.is_some_and(|site| site != "same-origin" && site != "none");
    let host = text(headers, &HOST);
    let origin = text(headers, &ORIGIN).map(|origin| origin.split_once("://").map(|(_, host)| host));
    is_cross || origin.is_some_and(|origin| origin.is_none() || origin != host)
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_the_whole_token_opens() {
        let guard = Guard::new(Some("open sesame".into()));
        assert!(guard.knows(&headers(&[("authorization", "Bearer open sesame")])));
        assert!(guard.knows(&headers(&[("authorization", "Basic YW55Ym9keTpvcGVuIHNlc2FtZQ==")])));
        for wrong in [
            "Basic YW55Ym9keTpvcGVu",
            "Basic %%%",
            "Bearer open sesam",
            "Bearer open sesame2",
            "Basic open sesame",
            "open sesame",
            "",
        ] {
            assert!(!guard.knows(&headers(&[("authorization", wrong)])), "{wrong}");
        }
        assert!(!guard.knows(&headers(&[])));
        assert!(Guard::new(None).knows(&headers(&[])));
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_are_hosts() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "[::1]"] {
            assert!(is_for_this_machine(&headers(&[("host", host)])), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:8080",
            "evil.example:127",
            "10.0.0.1",
            "0.0.0.0:8080",
            "[::]",
            "evil@localhost",
            "",
            "a b",
            "::1",
        ] {
            assert!(!is_for_this_machine(&headers(&[("host", host)])), "{host}");
        }
        assert!(!is_for_this_machine(&headers(&[])));
        let mut two = headers(&[("host", "localhost")]);
        two.append(HOST, HeaderValue::from_static("evil.example"));
        assert!(!is_for_this_machine(&two));
    }

    #[test]
    fn pages_of_other_sites_are_told_from_our_own() {
        let own = [("host", "box:8080"), ("origin", "http://box:8080"), ("sec-fetch-site", "same-origin")];
        assert!(!is_of_another_site(&headers(&own)));
        assert!(!is_of_another_site(&headers(&[("host", "box:8080")])));
        assert!(is_of_another_site(&headers(&[("host", "box:8080"), ("origin", "http://evil.example")])));
        assert!(is_of_another_site(&headers(&[("host", "box:8080"), ("origin", "null")])));
        assert!(is_of_another_site(&headers(&[("host", "box:8080"), ("sec-fetch-site", "cross-site")])));
    }
}
