//! What hosts say about themselves, asked directly: the cause when the driver finds no primary, and the number of
//! members.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::{ClientOptions, ServerAddress, Tls, TlsOptions};

/// Time for one host to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// What a host says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Member {
    set: Option<String>,
    /// The member knows a primary.
    has_primary: bool,
}

/// The cause, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Only an operator can correct it.
    Wrong(String),
    /// It may pass.
    Passing(String),
}

/// Asks every host of the connection string. `None` if no host answers, or nothing is wrong by now.
pub(super) async fn cause(options: &ClientOptions) -> Option<Cause> {
    let asked = options.hosts.iter().map(async |host| {
        let hello = hello(direct(options, host)).await?;
        let set = hello.get_str("setName").ok().map(str::to_owned);
        Some(Member { set, has_primary: hello.contains_key("primary") })
    });
    let members: Vec<Member> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    if members.is_empty() {
        return wants_tls(options).await;
    }
    judge(options.repl_set_name.as_deref(), &members)
}

/// The number of members that the first host to answer names; `None` if no host answers. Asked without the driver's
/// discovery, which would watch every member.
pub(super) async fn members(options: &ClientOptions) -> Option<usize> {
    let asked = options.hosts.iter().map(|host| {
        Box::pin(async move {
            let mut direct = direct(options, host);
            direct.credential = None;
            hello(direct).await.ok_or(())
        })
    });
    let (hello, _) = futures_util::future::select_ok(asked).await.ok()?;
    let count = |name: &str| hello.get_array(name).map_or(0, Vec::len);
    Some(["hosts", "passives", "arbiters"].into_iter().map(count).sum())
}

/// Asks the first host with TLS, if the configuration has none.
async fn wants_tls(options: &ClientOptions) -> Option<Cause> {
    if matches!(options.tls, Some(Tls::Enabled(_))) {
        return None;
    }
    // The certificate is not checked, so the server is told nothing: the answer alone counts.
    let mut direct = direct(options, options.hosts.first()?);
    direct.credential = None;
    direct.tls = Some(Tls::Enabled(TlsOptions::builder().allow_invalid_certificates(true).build()));
    hello(direct).await?;
    Some(Cause::Wrong("the server wants TLS: add tls=true to the connection string".to_owned()))
}

/// Options for a connection to this host alone.
fn direct(options: &ClientOptions, host: &ServerAddress) -> ClientOptions {
    let mut direct = options.clone();
    direct.hosts = vec![host.clone()];
    direct.direct_connection = Some(true);
    direct.repl_set_name = None;
    direct.server_selection_timeout = Some(LIMIT);
    direct.sdam_event_handler = None;
    direct
}

/// The answer to a greeting, or `None`.
async fn hello(options: ClientOptions) -> Option<Document> {
    let client = Client::with_options(options).ok()?;
    let hello = tokio::time::timeout(2 * LIMIT, client.database("admin").run_command(doc! { "hello": 1 })).await;
    client.shutdown().immediate(true).await;
    hello.ok()?.ok()
}

fn judge(expected: Option<&str>, members: &[Member]) -> Option<Cause> {
    let first = members.first()?;
    let other = members.iter().filter_map(|member| member.set.as_deref()).find(|set| Some(*set) != expected);
    if let (Some(expected), Some(other)) = (expected, other) {
        return Some(Cause::Wrong(format!(
            "its replica set is named {other:?}, not {expected:?}: correct replicaSet in the connection string"
        )));
    }
    if members.iter().all(|member| member.set.is_none()) {
        let text = "it belongs to no replica set: start it with --replSet and run rs.initiate()";
        return Some(Cause::Wrong(text.to_owned()));
    }
    if members.iter().any(|member| member.has_primary) {
        return None;
    }
    let set = first.set.as_deref().unwrap_or("the replica set");
    let answer =
        if members.len() == 1 { "1 host answers".to_owned() } else { format!("{} hosts answer", members.len()) };
    Some(Cause::Passing(format!(
        "{answer}, but {set} has no primary: a majority of its members must be up, see rs.status()"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(set: &str, has_primary: bool) -> Member {
        Member { set: Some(set.to_owned()), has_primary }
    }

    #[test]
    fn every_cause_has_its_words() {
        let wrong = |cause: Option<Cause>| matches!(cause, Some(Cause::Wrong(_)));
        assert_eq!(judge(Some("rs"), &[]), None, "no host answers: the driver's error says so");
        let cause = judge(Some("rs"), &[member("edge", true)]);
        assert!(matches!(cause, Some(Cause::Wrong(text)) if text.contains("\"edge\", not \"rs\"")));
        assert!(wrong(judge(Some("rs"), &[Member::default()])));
        assert!(wrong(judge(None, &[Member::default()])));
        let passing = judge(Some("rs"), &[member("rs", false), member("rs", false)]);
        assert!(matches!(passing, Some(Cause::Passing(text)) if text.contains("2 hosts answer")));
        assert_eq!(judge(Some("rs"), &[member("rs", true)]), None, "an election has ended meanwhile");
        assert_eq!(judge(None, &[member("rs", true)]), None);
    }
}
