//! TLS to a server: certificates, encrypted keys, renewals under the same path, and what `check` says.
//!
//! `tests/it/certificates` holds two authorities, a server's and a client's certificate by the first one, and their
//! keys. They serve these tests alone, and are valid for a hundred years.

use std::path::Path;

use bson::doc;
use testbed::node::Options;

use super::support::site::{HUB, Topology};
use super::support::{Site, eventually};

const PAIR: Topology<'static> = &[("DFW", &["HOU"]), ("HOU", &[])];

fn certificate(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/certificates").join(name)
}

/// A site whose servers speak TLS, and plain text as well.
async fn with_tls() -> Site {
    let path = |name: &str| certificate(name).to_string_lossy().into_owned();
    let arguments = [
        "--tlsMode",
        "preferTLS",
        "--tlsCertificateKeyFile",
        &path("server.pem"),
        "--tlsCAFile",
        &path("ca.pem"),
        "--tlsAllowConnectionsWithoutCertificates",
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    Site::own(PAIR, Options { arguments, ..Options::default() }).await
}

/// Copies a certificate into the folder of the configuration, under this name.
fn install(site: &Site, certificate_name: &str, name: &str) {
    std::fs::copy(certificate(certificate_name), site.folder().join(name)).unwrap();
}

fn reach(site: &mut Site, name: &str, options: &str) {
    let uri = format!("{}&{options}", site.nodes[name].uri());
    site.reach(name, &uri);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_replaced_under_the_same_path_is_seen_and_an_encrypted_key_is_read() {
    let mut site = with_tls().await;
    install(&site, "ca.pem", "ca.pem");
    install(&site, "client.pem", "client.pem");
    let key = "tlsCertificateKeyFile=client.pem&tlsCertificateKeyFilePassword=for-tests-only";
    reach(&mut site, HUB, "tls=true&tlsCAFile=ca.pem");
    reach(&mut site, "HOU", &format!("tls=true&tlsCAFile=ca.pem&{key}"));
    site.start().await;
    site.arrives_from_houston("over TLS").await;
    // The wrong authority: the links that start anew refuse the servers, and say so.
    install(&site, "other-ca.pem", "ca.pem");
    eventually("the file is read again", async || site.log().contains("other credentials for the hub")).await;
    eventually("HOU's links cannot connect", async || {
        site.spoke_status("HOU")["uplink"]["last_error"].to_string().to_lowercase().contains("certificate")
    })
    .await;
    site.at("HOU").insert_one(doc! { "_id": "meanwhile", "_pk": "HOU" }).await.unwrap();
    // The right one again: they heal without a command.
    install(&site, "ca.pem", "ca.pem");
    site.arrives_from_houston("after the renewal").await;
    assert!(site.at("DFW").find_one(doc! { "_id": "meanwhile" }).await.unwrap().is_some());
    assert!(!site.log().contains("for-tests-only"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_a_server_wants_instead_of_plain_text_and_warns_of_certificates_that_are_not_checked() {
    let mut site = with_tls().await;
    install(&site, "ca.pem", "ca.pem");
    let only = doc! { "setParameter": 1, "tlsMode": "requireTLS" };
    site.client("DFW").database("admin").run_command(only).await.unwrap();
    reach(&mut site, "DFW", "serverSelectionTimeoutMS=2000");
    reach(&mut site, "HOU", "tls=true&tlsInsecure=true");
    reach(&mut site, HUB, "tls=true&tlsCAFile=ca.pem");
    site.write_config();
    let (code, told) = site.command_code(&["check"]);
    assert_eq!(code, 1, "{told}");
    let line = |server: &str, words: &str| told.lines().any(|line| line.contains(server) && line.contains(words));
    assert!(line("spoke DFW", "the server wants TLS: add tls=true"), "{told}");
    assert!(line("spoke HOU", "its certificate is not checked"), "{told}");
    assert!(line("hub", "its collections can be written in transactions"), "{told}");
    // A file that is not there is a mistake of the configuration, with its line.
    reach(&mut site, HUB, "tls=true&tlsCAFile=absent.pem");
    site.write_config();
    let (done, told) = site.command(&["check"]);
    assert!(!done && told.contains("absent.pem") && told.contains("spokes.toml:"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_missing_action_and_reads_the_window_where_the_server_status_is_hidden() {
    let mut site = Site::own(PAIR, Options { users: true, ..Options::default() }).await;
    let admin = site.client(HUB).database("admin");
    let namespace = site.at(HUB).namespace();
    let on = |db: &str, coll: &str, actions: &[&str]| {
        doc! { "resource": { "db": db, "collection": coll }, "actions": actions.to_vec() }
    };
    let privileges = vec![
        on(&namespace.db, &namespace.coll, &["find", "changeStream", "insert", "update", "listIndexes"]),
        on(&namespace.db, "", &["listCollections"]),
        on(&site.metadata(), "", &["find", "insert", "update", "remove", "createCollection"]),
        on("local", "oplog.rs", &["find"]),
    ];
    let role = doc! { "createRole": "spokesync", "roles": [], "privileges": privileges };
    admin.run_command(role).await.unwrap();
    let user = doc! { "createUser": "sync", "pwd": "secret-of-sync", "roles": ["spokesync"] };
    admin.run_command(user).await.unwrap();
    let uri = site.nodes[HUB].uri_of("sync:secret-of-sync@");
    site.reach(HUB, &format!("{uri}&authSource=admin"));
    site.write_config();
    let (code, told) = site.command_code(&["check"]);
    assert_eq!(code, 1, "{told}");
    let hub: Vec<&str> = told.lines().filter(|line| line.contains(" hub: ")).collect();
    let missing: Vec<&&str> = hub.iter().filter(|line| line.starts_with("error")).collect();
    assert_eq!(missing.len(), 1, "{told}");
    assert!(missing[0].contains("may not remove") && missing[0].contains(r#"actions: ["remove"]"#), "{told}");
    assert!(hub.iter().any(|line| line.contains("its oplog goes back")), "{told}");
}
