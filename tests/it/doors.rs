//! The HTTP interface towards strangers: pages of other sites, requests that never end, and requests that would fill
//! memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bson::doc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
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
    let before = site.descriptors();
    let head = "POST /api/v1/verify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    let half_sent: Vec<TcpStream> = (0..CONNECTIONS).map(|_| send(&site.address(), head)).collect();
    let now = site.descriptors();
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

/// Requests of one run. `SPOKESYNC_REQUESTS` gives another number.
const REQUESTS: usize = 4_000;

/// A request of random parts: mostly readable, mostly refused.
fn random_request(random: &mut StdRng) -> String {
    const LINES: [&str; 18] = [
        "GET /",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /page/main.js",
        "GET /api/v1/status",
        "GET /api/v1/history",
        "GET /api/v1/logs",
        "GET /api/v1/logs/actors",
        "GET /api/v1/verify",
        "GET /api/v1/dead-letters",
        "POST /api/v1/verify",
        "POST /api/v1/logs/level",
        "POST /api/v1/spokes/DFW/pause",
        "POST /api/v1/spokes/DFW/resume",
        "POST /api/v1/spokes/DFW/restart",
        "POST /api/v1/spokes/DFW/resync",
        "POST /api/v1/spokes/DFW/dead-letters/retry",
    ];
    const METHODS: [&str; 9] = ["GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "G\u{e9}T"];
    const PARTS: [&str; 24] = [
        "api",
        "v1",
        "status",
        "history",
        "logs",
        "actors",
        "level",
        "verify",
        "dead-letters",
        "spokes",
        "DFW",
        "pause",
        "resume",
        "restart",
        "resync",
        "retry",
        "drop",
        "metrics",
        "healthz",
        "readyz",
        "page",
        "..",
        "%00",
        "%2e%2e%2f",
    ];
    const QUERIES: [&str; 10] = [
        "",
        "?offset=5",
        "?limit=-1",
        "?zone=DFW",
        "?offset=99999999999999999999",
        "?actor=DFW/reader&lines=1000000",
        "?level=trace",
        "?x=%ff",
        "?wait=true",
        "?lines=0",
    ];
    const BODIES: [&str; 12] = [
        "",
        "{}",
        "[]",
        "null",
        "{\"ids\":[]}",
        "{\"ids\":[{\"$oid\":\"x\"}]}",
        "{\"actor\":\"x\",\"level\":\"debug\"}",
        "{\"spokes\":[\"DFW\"],\"repair\":true}",
        "{\"ids\":",
        "\u{202e}",
        "{\"repair\":1}",
        "{\"a\":{\"a\":{\"a\":{}}}}",
    ];
    let random_half = random.random_bool(0.5);
    let mut one = |all: &[&str]| all[random.random_range(0..all.len())].to_owned();
    // Half of the requests name something that is there.
    if random_half {
        let (line, query, body) = (one(&LINES), one(&QUERIES), one(&BODIES));
        let head = "host: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
        return format!("{line}{query} HTTP/1.1\r\n{head}content-length: {}\r\n\r\n{body}", body.len());
    }
    let method = one(&METHODS);
    let depth = 1 + one(&["", "a", "aa", "aaa", "aaaa"]).len();
    let start = one(&["/", "/api/v1/", "/api/v1/spokes/DFW/", "//", "*", ""]);
    let path: Vec<String> = (0..depth).map(|_| one(&PARTS)).collect();
    let (query, body) = (one(&QUERIES), one(&BODIES));
    let more = one(&["", "origin: http://evil\r\n", "transfer-encoding: chunked\r\n", "cookie: a\r\n", "x: \u{1}\r\n"]);
    let kind = one(&["", "content-type: application/json\r\n", "content-type: text/plain\r\n"]);
    let host = one(&["host: localhost\r\n", "host: localhost\r\n", "host: evil\r\n", ""]);
    let length = match one(&["right", "right", "right", "none", "wrong"]).as_str() {
        "right" => format!("content-length: {}\r\n", body.len()),
        "wrong" => "content-length: -5\r\n".to_owned(),
        _ => String::new(),
    };
    format!(
        "{method} {start}{}{query} HTTP/1.1\r\n{host}{kind}{more}{length}connection: close\r\n\r\n{body}",
        path.join("/")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_are_answered_without_an_error_of_the_program_and_take_no_memory() {
    let requests = std::env::var("SPOKESYNC_REQUESTS").ok().and_then(|most| most.parse().ok()).unwrap_or(REQUESTS);
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let (address, mut random) = (site.address(), StdRng::seed_from_u64(7));
    let (mut codes, mut first) = (BTreeMap::<String, usize>::new(), 0);
    for number in 0..requests {
        let request = random_request(&mut random);
        // Nothing more comes: a request that promises a longer body ends here.
        let mut stream = send(&address, &request);
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        let code = head.split(' ').nth(1).unwrap_or("none").to_owned();
        assert!(!code.starts_with('5') || code == "503", "{request:?}: {}", String::from_utf8_lossy(&answer));
        *codes.entry(code).or_default() += 1;
        if number == requests / 10 {
            first = site.memory("VmRSS");
        }
    }
    let last = site.memory("VmRSS");
    assert!(last < first + 20_000, "{first} kB, then {last}");
    for code in ["200", "202", "400", "404"] {
        assert!(codes.contains_key(code), "{codes:?}");
    }
    assert_eq!(ask(&address, "GET /healthz", "host: localhost\r\n", "").code, 200, "{codes:?}");
}
