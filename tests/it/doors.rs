//! The HTTP interface towards strangers: pages of other sites, requests that never end, and requests that would fill
//! memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bson::doc;
use serde_json::{Value, json};

use super::support::{Site, eventually};

/// An answer: status code, head in lower case, body.
struct Answer {
    code: u16,
    head: String,
    body: String,
}

/// Opens a connection and sends bytes.
fn send(address: &str, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    stream
}

/// Reads an answer until the program closes the connection.
fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{text:?}"));
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

fn ask(address: &str, line: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    read(send(
        address,
        &format!("{line} HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"),
    ))
}

const PATHS: [&str; 6] = [
    "GET /",
    "GET /api/v1/status",
    "GET /api/v1/logs",
    "GET /metrics",
    "POST /api/v1/spokes/DFW/pause",
    "POST /api/v1/verify",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_name_was_bent_to_this_machine_reads_and_changes_nothing() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let address = site.address();
    let port = address.rsplit(':').next().unwrap();
    for path in PATHS {
        let evil = format!(
            "host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\nsec-fetch-site: same-origin\r\n"
        );
        assert_eq!(ask(&address, path, &evil, "").code, 403, "{path}");
        assert_eq!(ask(&address, path, "", "").code, 400, "{path} without a host");
    }
    assert_eq!(site.spoke_status("DFW")["state"], "streaming");
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        assert_eq!(ask(&address, "GET /api/v1/status", &format!("host: {host}:{port}\r\n"), "").code, 200, "{host}");
    }
    // Probes come with any name, and learn nothing.
    assert_eq!(ask(&address, "GET /healthz", "host: box.example\r\n", "").code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_any_name_is_served() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.http_config = "token = \"open sesame and all\"".to_owned();
    site.start().await;
    let headers = "host: box.example\r\nauthorization: Bearer open sesame and all\r\n";
    assert_eq!(ask(&site.address(), "GET /api/v1/status", headers, "").code, 200);
    assert_eq!(ask(&site.address(), "GET /api/v1/status", "host: box.example\r\n", "").code, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_the_interface_is_json_and_nobody_keeps_it() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let json = "host: localhost\r\ncontent-type: application/json\r\n";
    for (line, body, code) in [
        ("GET /api/v1/status", "", 200),
        ("GET /nowhere", "", 404),
        ("DELETE /api/v1/status", "", 404),
        ("PUT /api/v1/spokes/DFW/pause", "", 404),
        ("POST /api/v1/spokes/NYC/pause", "", 404),
        ("POST /api/v1/spokes/DFW/dance", "", 404),
        ("POST /api/v1/logs/level", "{", 400),
        ("POST /api/v1/logs/level", "{\"level\": 1}", 400),
        ("GET /api/v1/logs?colour=red", "", 400),
        ("POST /api/v1/verify", "[]", 400),
        ("POST /api/v1/verify", &"x".repeat(300_000), 413),
    ] {
        let answer = ask(&site.address(), line, json, body);
        assert_eq!(answer.code, code, "{line}: {}", answer.body);
        assert!(serde_json::from_str::<Value>(&answer.body).is_ok(), "{line}: {}", answer.body);
        for header in ["content-type: application/json", "x-content-type-options: nosniff", "cache-control: no-store"] {
            assert!(answer.head.contains(header), "{line}: {header} is missing in {}", answer.head);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_take_neither_descriptors_nor_time_from_the_links() {
    // More than are served at the same time, and no more than the operating system lets wait.
    const CONNECTIONS: usize = 300;
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let descriptors = || {
        let process = site.program.as_ref().unwrap().process().id();
        std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
    };
    let before = descriptors();
    let head = "POST /api/v1/verify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    let half_sent: Vec<TcpStream> = (0..CONNECTIONS).map(|_| send(&site.address(), head)).collect();
    let now = descriptors();
    assert!(now < before + 270, "{before} before, {now} now");
    site.at("DFW").insert_one(doc! { "_id": 1, "_pk": "DFW" }).await.unwrap();
    eventually("the document is at the hub", async || {
        site.at(super::support::site::HUB).find_one(doc! { "_id": 1 }).await.unwrap().is_some()
    })
    .await;
    // Each is given up, and the next requests are served.
    let answer = read(half_sent.into_iter().next().unwrap());
    assert_eq!(answer.code, 408, "{}", answer.body);
    assert!(answer.head.contains("no-store") && serde_json::from_str::<Value>(&answer.body).is_ok(), "{}", answer.head);
    eventually("other requests are served", async || {
        site.program.as_ref().unwrap().get("/healthz").is_ok_and(|(code, _)| code == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_leave_a_request_unfinished_keeps_a_connection() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.http_config = "token = \"open sesame and all\"".to_owned();
    site.start().await;
    let chunks = "transfer-encoding: chunked\r\n\r\n5\r\nhel";
    for (what, sent, code) in [
        ("half a second request", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nG".to_owned(), 200),
        ("chunks to a GET", format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{chunks}"), 411),
        ("chunks without the token", format!("POST /api/v1/verify HTTP/1.1\r\nhost: x\r\n{chunks}"), 411),
        ("chunks to an unknown path", format!("POST /nowhere HTTP/1.1\r\nhost: x\r\n{chunks}"), 411),
    ] {
        // The answer is complete only once the program closes the connection.
        let answer = read(send(&site.address(), &sent));
        assert_eq!(answer.code, code, "{what}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_a_paused_spoke_and_of_unknown_actors_fills_no_memory() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let program = site.program.as_ref().unwrap();
    assert_eq!(program.post("/api/v1/spokes/DFW/pause").unwrap().0, 202);
    eventually("DFW is paused", async || site.spoke_status("DFW")["state"] == "paused").await;
    let retry = "/api/v1/spokes/DFW/dead-letters/retry";
    let codes: Vec<u16> = (0..100).map(|_| program.post_json(retry, &json!({ "ids": [0] })).unwrap().0).collect();
    assert_eq!((codes[0], codes[99]), (202, 409));
    assert_eq!(program.post_json(retry, &json!({ "ids": vec![0; 10_001] })).unwrap().0, 400);
    assert_eq!(program.post_json(retry, &json!({ "ids": vec![0; 1_000_000] })).unwrap().0, 413);
    let level = json!({ "actor": "NYC/reader", "level": "debug" });
    assert_eq!(program.post_json("/api/v1/logs/level", &level).unwrap().0, 404);
    // The spoke takes requests again once it has handled those that waited.
    assert_eq!(program.post("/api/v1/spokes/DFW/resume").unwrap().0, 202);
    eventually("requests are taken again", async || program.post_json(retry, &json!({ "ids": [0] })).unwrap().0 == 202)
        .await;
}
