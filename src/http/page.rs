//! `GET /`, `GET /page/{name}`: the dashboard. The program contains all files of the page, the page loads nothing from
//! other sites, and its data comes from the public paths.

use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use actix_web::{HttpRequest, HttpResponse, web};

/// Content security policy: the page loads files of its own origin only, and no other page may embed it.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// A file of the page: name, content type, content.
type Asset = (&'static str, &'static str, &'static str);

const ASSETS: &[Asset] = &[
    ("style.css", STYLE, include_str!("page/style.css")),
    ("icon.svg", IMAGE, include_str!("page/icon.svg")),
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("chart.js", SCRIPT, include_str!("page/chart.js")),
    ("confirm.js", SCRIPT, include_str!("page/confirm.js")),
    ("details.js", SCRIPT, include_str!("page/details.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("facts.js", SCRIPT, include_str!("page/facts.js")),
    ("format.js", SCRIPT, include_str!("page/format.js")),
    ("geometry.js", SCRIPT, include_str!("page/geometry.js")),
    ("hub.js", SCRIPT, include_str!("page/hub.js")),
    ("icons.js", SCRIPT, include_str!("page/icons.js")),
    ("letters.js", SCRIPT, include_str!("page/letters.js")),
    ("link.js", SCRIPT, include_str!("page/link.js")),
    ("log.js", SCRIPT, include_str!("page/log.js")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("model.js", SCRIPT, include_str!("page/model.js")),
    ("poll.js", SCRIPT, include_str!("page/poll.js")),
    ("route.js", SCRIPT, include_str!("page/route.js")),
    ("table.js", SCRIPT, include_str!("page/table.js")),
    ("verification.js", SCRIPT, include_str!("page/verification.js")),
    ("wheel.js", SCRIPT, include_str!("page/wheel.js")),
];

pub(super) async fn index() -> HttpResponse {
    answer(HTML, include_str!("page/index.html"))
}

pub(super) async fn part(name: web::Path<String>, request: HttpRequest) -> HttpResponse {
    match ASSETS.iter().find(|(known, ..)| *known == name.as_str()) {
        Some((_, kind, text)) => answer(kind, text),
        None => super::unknown(request).await,
    }
}

fn answer(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(kind)
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        // Without a check at every load, a browser would show old files after an update of the program.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .body(text)
}
