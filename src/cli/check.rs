//! `spokesync check`: checks the configuration and every server, and prints findings with advice.

use std::time::Duration;

use bson::{Document, Uuid, doc};

use super::Exit;
use super::servers::endpoints;
use super::shown::shown;
use crate::config::Config;
use crate::link::servers::is_one_with;
use crate::mongo::endpoint::Endpoint;
use crate::mongo::error::{Error, codes};
use crate::mongo::metadata::identity;
use crate::mongo::server::{Server, first_batch};
use crate::mongo::trial::{self, Missing};
use crate::mongo::{metadata, oplog, tail};
use crate::observe::logs;
use crate::rules::names::Namespace;

/// A shorter oplog window causes a warning: an outage of a few hours would exceed the window.
const SHORT_WINDOW: Duration = Duration::from_secs(6 * 3_600);

const CONNECTIONS: u32 = 4;

/// Weight of a finding; only `Wrong` makes the command fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Well,
    Warning,
    Wrong,
}

struct Finding {
    verdict: Verdict,
    text: String,
}

impl Finding {
    fn well(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Well, text: text.into() }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, text: text.into() }
    }

    fn wrong(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, text: text.into() }
    }
}

pub(super) fn run(config: &Config) -> Exit {
    if let Err(invalid) = logs::try_directory(&config.log) {
        eprintln!("{invalid}");
        return Exit::Usage;
    }
    println!("ok       configuration: {} spokes", config.spokes.len());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system gives threads");
    let findings = runtime.block_on(all(config));
    let mut exit = Exit::Done;
    for (server, findings) in findings {
        for Finding { verdict, text } in findings {
            let word = match verdict {
                Verdict::Well => "ok",
                Verdict::Warning => "warning",
                Verdict::Wrong => "error",
            };
            println!("{word:<8} {server}: {}", shown(&text));
            if verdict == Verdict::Wrong {
                exit = Exit::Failed;
            }
        }
    }
    exit
}

async fn all(config: &Config) -> Vec<(String, Vec<Finding>)> {
    let looking = endpoints(config, CONNECTIONS).map(|(name, endpoint)| async move {
        let (findings, id) = look(&endpoint).await;
        (name, findings, id)
    });
    let mut looked = futures_util::future::join_all(looking).await;
    // One replica set must not be configured twice.
    for number in 0..looked.len() {
        let Some(id) = looked[number].2 else { continue };
        let others = if config.sync.allow_shared_replica_sets { number.min(1) } else { number };
        let other = looked[..others].iter().find(|(_, _, other)| *other == Some(id)).map(|(name, ..)| name.clone());
        if let Some(other) = other {
            let other = if other == "hub" { "the hub".to_owned() } else { other };
            looked[number].1.push(Finding::wrong(is_one_with(&other)));
        }
    }
    looked.into_iter().map(|(name, findings, _)| (name, findings)).collect()
}

/// Checks a server. Returns also the identity of the replica set, if it can be read.
async fn look(endpoint: &Endpoint) -> (Vec<Finding>, Option<Uuid>) {
    let server = match endpoint.connect().await {
        Ok(server) => server,
        Err(error) => return (vec![Finding::wrong(reason(&error))], None),
    };
    // The server and its change stream.
    let (major, minor) = server.version();
    let mut findings = vec![Finding::well(format!("a replica set of MongoDB {major}.{minor} at {}", endpoint.hosts()))];
    findings.extend(endpoint.warnings().into_iter().map(Finding::warning));
    findings.push(match tail::present_position(&server).await {
        Ok(_) => Finding::well("its change stream can be read"),
        Err(error) if error.code() == Some(codes::UNAUTHORIZED) => {
            Finding::wrong(format!("{}; grant find and changeStream on the collections", reason(&error)))
        }
        Err(error) => Finding::wrong(format!("{}{}", reason(&error), advice(&error))),
    });
    // The privileges: writes to the metadata database.
    let writes = async {
        metadata::prepare(&server).await?;
        server.tick().await?;
        identity::of(&server).await
    };
    let id = writes.await;
    findings.push(match &id {
        Ok(_) => Finding::well("its metadata database can be written"),
        Err(error) => Finding::wrong(format!("{}{}", reason(error), advice(error))),
    });
    findings.extend(trials(&server).await);
    // The oplog, and the indexes of every synced collection.
    findings.push(oplog(&server).await);
    for namespace in server.namespaces() {
        findings.extend(indexes(&server, namespace).await);
    }
    (findings, id.ok())
}

/// The privileges for writes, tried in transactions that are given up.
async fn trials(server: &Server) -> Vec<Finding> {
    match trial::writes(server).await {
        Err(error) => vec![Finding::wrong(format!("no transaction can be tried: {}", reason(&error)))],
        Ok(missing) if missing.is_empty() => vec![Finding::well("its collections can be written in transactions")],
        Ok(missing) => missing.into_iter().map(|missing| Finding::wrong(grant(&missing))).collect(),
    }
}

/// The privilege that is missing, as MongoDB's shell grants it.
fn grant(missing: &Missing) -> String {
    let Missing { action, database, collection } = missing;
    format!(
        "the user may not {action} in {database}.{collection}; as an administrator: \
         db.getSiblingDB(\"admin\").grantPrivilegesToRole(\"spokesync\", [{{ resource: {{ db: \"{database}\", \
         collection: \"{collection}\" }}, actions: [\"{action}\"] }}])"
    )
}

async fn oplog(server: &Server) -> Finding {
    match oplog::window(server).await {
        Ok(Some(window)) => {
            let seconds = window.latest.time.saturating_sub(window.earliest.time);
            let text = format!("its oplog goes back {:.1} hours", f64::from(seconds) / 3_600.0);
            match Duration::from_secs(seconds.into()) < SHORT_WINDOW {
                true => Finding::warning(format!("{text}: size it for the longest outage that must be survived")),
                false => Finding::well(text),
            }
        }
        Ok(None) => Finding::warning(
            "its oplog window is unknown: grant serverStatus on the cluster, or find on local.oplog.rs where the \
             provider hides it",
        ),
        Err(error) => Finding::warning(reason(&error)),
    }
}

async fn indexes(server: &Server, namespace: &Namespace) -> Vec<Finding> {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    let database = server.client().database(&namespace.database);
    let list = doc! { "listIndexes": &namespace.collection, "cursor": { "batchSize": 1_000 } };
    let reply = match server.run("listing indexes", &database, list).await {
        Ok(reply) => reply,
        Err(error) if error.code() == Some(NAMESPACE_NOT_FOUND) => {
            return vec![Finding::well(format!("{namespace} is not there yet"))];
        }
        Err(error) => return vec![Finding::warning(format!("{namespace}: {}", reason(&error)))],
    };
    let indexes: Vec<&Document> = first_batch(&reply).collect();
    of_indexes(namespace, &indexes, server.partition_key())
}

fn of_indexes(namespace: &Namespace, indexes: &[&Document], partition_key: &str) -> Vec<Finding> {
    let named = |index: &Document| index.get_str("name").unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    for index in indexes {
        if index.contains_key("expireAfterSeconds") {
            let text = format!("{namespace}: {} expires documents: they are deleted everywhere", named(index));
            findings.push(Finding::warning(text));
        }
        if index.get_bool("unique").unwrap_or(false) {
            let text =
                format!("{namespace}: {} is unique: a document that violates it becomes a dead letter", named(index));
            findings.push(Finding::warning(text));
        }
    }
    let leads = |index: &&Document| {
        index.get_document("key").is_ok_and(|key| key.keys().next().is_some_and(|first| first == partition_key))
    };
    if !indexes.iter().any(leads) {
        let text = format!(
            "{namespace}: an index on {{{partition_key}: 1, _id: 1}} would make copying one zone of many faster"
        );
        findings.push(Finding::well(text));
    }
    findings
}

/// The way out of a failed write to the metadata database.
fn advice(error: &Error) -> &'static str {
    match error.code() {
        Some(codes::UNAUTHORIZED) => "; see the README for the privileges",
        Some(codes::WRITE_CONCERN_FAILED) => {
            "; no majority of the replica set confirms writes: see rs.status() for members that are down"
        }
        _ => "",
    }
}

fn reason(error: &Error) -> String {
    let text = error.to_string();
    // The text starts with the server's name, which the output line shows already.
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(indexes: &[Document]) -> Vec<(Verdict, String)> {
        let namespace = Namespace { database: "app".to_owned(), collection: "orders".to_owned() };
        let indexes: Vec<&Document> = indexes.iter().collect();
        let findings = of_indexes(&namespace, &indexes, "_pk");
        findings.into_iter().map(|Finding { verdict, text }| (verdict, text)).collect()
    }

    #[test]
    fn a_missing_privilege_comes_with_the_command_that_grants_it() {
        let (action, database, collection) = ("insert", "app".to_owned(), "orders".to_owned());
        let text = grant(&Missing { action, database, collection });
        assert!(text.contains(r#"resource: { db: "app", collection: "orders" }, actions: ["insert"]"#), "{text}");
    }

    #[test]
    fn an_index_that_leads_with_the_partition_key_is_suggested_where_there_is_none() {
        let id = doc! { "name": "_id_", "key": { "_id": 1 } };
        let trailing = doc! { "name": "a", "key": { "a": 1, "_pk": 1 } };
        let leading = doc! { "name": "pk", "key": { "_pk": 1, "_id": 1 } };
        let suggested = found(&[id.clone(), trailing]);
        assert!(matches!(suggested.as_slice(), [(Verdict::Well, text)] if text.contains("{_pk: 1, _id: 1}")));
        assert_eq!(found(&[id, leading]), []);
    }

    #[test]
    fn indexes_that_expire_documents_or_are_unique_are_warned_of() {
        let leading = doc! { "name": "pk", "key": { "_pk": 1 } };
        let expiring = doc! { "name": "ttl", "key": { "at": 1 }, "expireAfterSeconds": 60 };
        let unique = doc! { "name": "email", "key": { "email": 1 }, "unique": true };
        let warnings = found(&[leading, expiring, unique]);
        let expected = ["ttl expires documents", "email is unique"];
        assert_eq!(warnings.len(), expected.len());
        for ((verdict, text), expected) in warnings.into_iter().zip(expected) {
            assert!(verdict == Verdict::Warning && text.contains(expected), "{text}");
        }
    }
}
