//! Each actor's log stream: over HTTP, and in files.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use bson::doc;
use serde_json::{Value, json};

use super::support::site::TRIANGLE;
use super::support::{Site, eventually};

fn lines(body: &Value) -> Vec<Value> {
    let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actors_lines_are_its_own_over_http_and_in_its_file() {
    let mut site = Site::shared(TRIANGLE).await;
    site.more_config = "[log]\ndirectory = \"logs\"".to_owned();
    site.start().await;
    let program = site.program.as_ref().unwrap();
    let actors = program.get("/api/v1/logs/actors").unwrap().1;
    for actor in ["coordinator", "DFW/reader", "DFW/writer", "DFW/spoke"] {
        assert!(actors.as_array().unwrap().contains(&json!(actor)), "{actors}");
    }
    let (code, body) = program.get("/api/v1/logs?actor=DFW/reader&level=info").unwrap();
    assert_eq!(code, 200);
    let said = lines(&body);
    assert!(!said.is_empty());
    for line in &said {
        assert_eq!((&line["actor"], &line["generation"]), (&json!("DFW/reader"), &json!(1)), "{line}");
        assert!(
            line["time"].as_str().unwrap().contains('T') && line["message"].is_string() && line["fields"].is_object()
        );
    }
    assert_eq!(lines(&program.get("/api/v1/logs?actor=DFW/reader&level=error").unwrap().1), Vec::<Value>::new());
    assert!(lines(&program.get("/api/v1/logs").unwrap().1).len() > said.len());
    assert_eq!(program.get("/api/v1/logs?actor=NYC/reader").unwrap().0, 404);
    assert_eq!(program.get("/api/v1/logs?level=loud").unwrap().0, 400);

    // After a restart the actor keeps its stream and its file.
    assert_eq!(program.post("/api/v1/spokes/DFW/resync").unwrap().0, 202);
    let of_second = || {
        let said = lines(&program.get("/api/v1/logs?actor=DFW/reader").unwrap().1);
        said.iter().any(|line| line["generation"] == 2)
    };
    eventually("the next generation logs", async || of_second()).await;
    let file = std::fs::read_to_string(site.folder().join("logs/DFW/reader.log")).unwrap();
    assert!(file.contains("DFW/reader#1: nothing to copy") && file.contains("DFW/reader#2: "), "{file}");
    assert!(!file.contains("HOU/"), "{file}");
    let hub = std::fs::read_to_string(site.folder().join("logs/coordinator.log")).unwrap();
    assert!(hub.contains("coordinator: starting"), "{hub}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_lines_as_they_come_and_one_that_never_reads_holds_up_nobody() {
    let mut site = Site::shared(&[("DFW", &[])]).await;
    site.start().await;
    let address = site.address();
    let follow = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let request = "GET /api/v1/logs?actor=DFW/reader&follow=true HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    // Twenty followers never read.
    let deaf: Vec<TcpStream> = (0..20).map(|_| follow()).collect();
    let mut lines = BufReader::new(follow()).lines();
    let level = json!({ "actor": "DFW/reader", "level": "debug" });
    assert_eq!(site.program.as_ref().unwrap().post_json("/api/v1/logs/level", &level).unwrap().0, 202);
    for id in 0..200 {
        site.at("DFW").insert_one(doc! { "_id": id, "_pk": "DFW" }).await.unwrap();
    }
    assert_eq!(site.program.as_ref().unwrap().post("/api/v1/spokes/DFW/resync").unwrap().0, 202);
    assert!(lines.any(|line| line.unwrap().contains("comparing everything")));
    site.assert_converged().await;
    drop(deaf);
}
