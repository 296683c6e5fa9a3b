//! Connection strings: checked without a connection, compared, and never printed with their password.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mongodb::error::ErrorKind;
use mongodb::options::{ConnectionString, HostInfo, ServerAddress, Tls};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

/// A connection string that the driver accepts. `Debug` shows the hosts only.
#[derive(Clone)]
pub struct Uri {
    text: SecretString,
    hosts: String,
    /// The files that the connection string comes from, or that it names.
    files: Vec<CredentialsFile>,
}

/// A file with credentials, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CredentialsFile {
    path: PathBuf,
    /// A hash of the content, which tells a renewed certificate from the former one.
    content: u64,
}

impl CredentialsFile {
    fn read(path: PathBuf) -> std::io::Result<Self> {
        let content = super::hash(&std::fs::read(&path)?);
        Ok(Self { path, content })
    }
}

/// Options whose value is the path of a file with credentials.
const FILE_OPTIONS: [&str; 2] = ["tlscafile", "tlscertificatekeyfile"];

impl Uri {
    /// Checks a connection string.
    ///
    /// # Errors
    /// All problems, in words that show neither user name nor password.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let Some((scheme @ ("mongodb" | "mongodb+srv"), rest)) = text.split_once("://") else {
            return Err(vec!["a connection string starts with mongodb:// or mongodb+srv://".to_owned()]);
        };
        // The driver takes a raw '?' or '/' in a password for the start of the options or the database, and an error
        // would show a part of the password. The user's part, up to the last '@', is split off before the other parts
        // are checked.
        let (user, after_user) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        if user.is_some_and(|user| user.contains(['?', '/', '#', '[', ']', '@'])) {
            return Err(vec![ENCODE.to_owned()]);
        }
        let (hosts, options) = after_user.split_once('?').unwrap_or((after_user, ""));
        let mut problems = option_problems(scheme, user.is_some(), options);
        if ConnectionString::parse(format!("{scheme}://{hosts}")).is_err() {
            problems.push(format!("the hosts cannot be read: write host:port, with commas between them; {ENCODE}"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        match ConnectionString::parse(text) {
            Ok(parsed) => Ok(Self { text: text.into(), hosts: describe_hosts(&parsed.host_info), files: Vec::new() }),
            // Hosts and options alone are valid: the problem is in the user's part.
            Err(_) => Err(vec![ENCODE.to_owned()]),
        }
    }

    /// Reads the files that the connection string names. A relative path is relative to `folder`. `file`: the file that
    /// holds the connection string, if there is one.
    ///
    /// # Errors
    /// Every file that cannot be read.
    pub fn with_files(self, folder: &Path, file: Option<PathBuf>) -> Result<Self, Vec<String>> {
        let (mut files, mut problems) = (Vec::new(), Vec::new());
        let mut read = |what: &str, path: PathBuf| match CredentialsFile::read(path.clone()) {
            Ok(file) => files.push(file),
            Err(error) => problems.push(format!("{what} {} cannot be read: {error}", path.display())),
        };
        if let Some(file) = file {
            read("the file", file);
        }
        // The options follow the last '?': a raw one in the password is refused.
        let Some((before, options)) = self.expose().rsplit_once('?') else { return Ok(Self { files, ..self }) };
        let options: Vec<String> = options
            .split('&')
            .map(|option| match option.split_once('=') {
                Some((name, value)) if FILE_OPTIONS.contains(&name.to_ascii_lowercase().as_str()) => {
                    let path = folder.join(&*percent_decode_str(value).decode_utf8_lossy());
                    let value = utf8_percent_encode(&path.to_string_lossy(), NON_ALPHANUMERIC).to_string();
                    read(&format!("the option {name} names a file, but"), path);
                    format!("{name}={value}")
                }
                _ => option.to_owned(),
            })
            .collect();
        let text = format!("{before}?{}", options.join("&"));
        if problems.is_empty() { Ok(Self { text: text.into(), hosts: self.hosts, files }) } else { Err(problems) }
    }

    /// The files with credentials: a change of one makes another connection string.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// What somebody on the network can do because of the options, in words.
    pub fn warnings(&self) -> Vec<&'static str> {
        let Ok(parsed) = ConnectionString::parse(self.expose()) else { return Vec::new() };
        let is_here = match &parsed.host_info {
            HostInfo::HostIdentifiers(hosts) => hosts.iter().all(is_loopback),
            _ => false,
        };
        match parsed.tls {
            Some(Tls::Enabled(tls)) if tls.allow_invalid_certificates == Some(true) => vec![
                "its certificate is not checked: anybody on the way can pass for the server; remove tlsInsecure or \
                 tlsAllowInvalidCertificates, and name the authority with tlsCAFile",
            ],
            Some(Tls::Enabled(_)) => Vec::new(),
            _ if is_here => Vec::new(),
            _ => vec!["the connection is plain text: anybody on the way reads and changes everything; add tls=true"],
        }
    }

    /// The name of a service that answers like MongoDB and lacks what the sync needs; by the names of its hosts.
    pub fn imitation(&self) -> Option<&'static str> {
        const NAMES: [(&str, &str); 3] = [
            (".docdb.amazonaws.com", "Amazon DocumentDB"),
            (".docdb-elastic.amazonaws.com", "Amazon DocumentDB"),
            (".cosmos.azure.com", "Azure Cosmos DB"),
        ];
        let is_of = |suffix: &str| {
            self.hosts.split(',').any(|host| {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                name.to_ascii_lowercase().ends_with(suffix)
            })
        };
        NAMES.into_iter().find(|(suffix, _)| is_of(suffix)).map(|(_, name)| name)
    }

    /// The whole connection string with its password, for the driver only.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// The hosts, for messages and logs.
    pub fn hosts(&self) -> &str {
        &self.hosts
    }
}

impl PartialEq for Uri {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose() && self.files == other.files
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({})", self.hosts)
    }
}

const ENCODE: &str = "in a user name or password, percent-encode @ : / ? # [ ] and %";

/// Advice for an option that only other drivers accept, or that breaks the sync.
fn advice(option: &str) -> Option<&'static str> {
    let (name, value) = option.split_once('=')?;
    Some(match (name.to_ascii_lowercase().as_str(), value) {
        ("timeoutms" | "sockettimeoutms", _) => {
            "is not supported by the MongoDB driver for Rust: remove it, spokesync bounds every call by itself"
        }
        ("waitqueuetimeoutms", _) => {
            "is not supported by the MongoDB driver for Rust: remove it, spokesync sizes its connection pools itself"
        }
        ("loadbalanced", "true") => "hides the replica set that change streams need: remove it",
        _ => return None,
    })
}

fn option_problems(scheme: &str, has_user: bool, options: &str) -> Vec<String> {
    let name = |option: &str| option.split_once('=').map_or(option, |(name, _)| name).to_owned();
    let mut problems = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        match advice(option) {
            Some(advice) => problems.push(format!("the option {} {advice}", name(option))),
            None => kept.push(option),
        }
    }
    // The driver stops at the first error. An option is wrong if the error disappears or changes without the option.
    let refusal = |kept: &[&str]| {
        let user = if has_user { "user:password@" } else { "" };
        ConnectionString::parse(format!("{scheme}://{user}host/?{}", kept.join("&"))).err().map(|error| message(&error))
    };
    while let Some(message) = refusal(&kept) {
        let without = |index: usize| [&kept[..index], &kept[index + 1..]].concat();
        let Some(index) = (0..kept.len()).find(|&index| refusal(&without(index)).as_ref() != Some(&message)) else {
            problems.push(message);
            break;
        };
        let name = name(kept.remove(index));
        let secret = name.to_ascii_lowercase().contains("pass") || name.eq_ignore_ascii_case("authMechanismProperties");
        let reason = if secret { "its value cannot be read" } else { &message };
        problems.push(format!("the option {name} cannot be used: {reason}"));
    }
    problems
}

/// The driver's message, without the server reply that `Display` appends.
fn message(error: &mongodb::error::Error) -> String {
    match error.kind.as_ref() {
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        _ => "the driver cannot read it".to_owned(),
    }
}

fn is_loopback(host: &ServerAddress) -> bool {
    match host {
        ServerAddress::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        // A socket of this machine.
        _ => true,
    }
}

fn describe_hosts(hosts: &HostInfo) -> String {
    match hosts {
        HostInfo::HostIdentifiers(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            hosts.join(",")
        }
        HostInfo::DnsRecord(name) => name.clone(),
        _ => "an address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_off_this_machine_and_unchecked_certificates_are_warned_of() {
        let warned = |text: &str| Uri::parse(text).expect("valid").warnings().join("");
        for quiet in ["mongodb://localhost/", "mongodb://127.0.0.2,[::1]:27018/", "mongodb://hub.example.com/?tls=true"]
        {
            assert_eq!(warned(quiet), "", "{quiet}");
        }
        assert!(warned("mongodb://hub.example.com/").contains("plain text"));
        assert!(warned("mongodb://localhost,10.0.0.1/").contains("plain text"));
        assert!(warned("mongodb://hub.example.com/?tls=true&tlsInsecure=true").contains("not checked"));
        assert!(warned("mongodb://localhost/?tls=true&tlsAllowInvalidCertificates=true").contains("not checked"));
    }

    #[test]
    fn services_that_only_answer_like_mongodb_are_known_by_their_hosts() {
        let imitation = |host: &str| Uri::parse(&format!("mongodb://{host}/")).expect("valid").imitation();
        assert_eq!(imitation("c.node.us-east-1.docdb.amazonaws.com:27017"), Some("Amazon DocumentDB"));
        assert_eq!(imitation("Account.mongo.Cosmos.Azure.com:10255"), Some("Azure Cosmos DB"));
        assert_eq!(imitation("cosmos.azure.com.example.com"), None);
    }

    fn problems(text: &str) -> Vec<String> {
        Uri::parse(text).err().unwrap_or_default()
    }

    #[test]
    fn only_the_hosts_are_ever_printed() {
        let uri = Uri::parse("mongodb://me:s3cret@a.example:27017,b.example/?replicaSet=rs").expect("valid");
        assert_eq!(format!("{uri:?}"), "Uri(a.example:27017,b.example:27017)");
        assert!(uri.expose().contains("s3cret"));
    }

    #[test]
    fn no_error_shows_a_password() {
        let wrong = [
            "mongodb://me:s3cret@host:port",
            "mongodb://me:s3?cret@host",
            "mongodb://me:s3/cret@host",
            "mongodb://me:s3@cret@host",
            "mongodb://me:s3cret%zz@host",
            "mongodb://me:s3cret",
            "mongodb://me:s3cret@host/?replicaSet",
            "mongodb://me:s3cret@host/?maxPoolSize=s3cret&x=1",
            "http://me:s3cret@host",
            "mongodb://me:s3cret@host/a.s3cret b/?authMechanism=NONE",
        ];
        for text in wrong {
            let found = problems(text);
            assert!(!found.is_empty(), "{text} was accepted");
            let shown = found.join("; ");
            assert!(!shown.contains("s3") || text.contains("maxPoolSize"), "{text}: {shown}");
        }
    }

    #[test]
    fn options_of_other_drivers_are_explained_all_at_once() {
        let found = problems("mongodb://host/?timeoutMS=5&socketTimeoutMS=1&waitQueueTimeoutMS=1&sokcetTimeout=7&w=1");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("timeoutMS") && found[0].contains("spokesync bounds every call"), "{}", found[0]);
        assert!(found[3].contains("sokcetTimeout"), "{}", found[3]);
    }

    #[test]
    fn a_renewed_certificate_makes_another_connection_string_and_its_path_is_relative_to_the_naming_file() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca & more.pem"), "one").expect("written");
        let uri = || {
            let uri = Uri::parse("mongodb://me:s3cret@host/?tls=true&tlsCAFile=ca%20%26%20more.pem").expect("valid");
            uri.with_files(folder.path(), None).expect("it can be read")
        };
        let (one, path) = (uri(), folder.path().join("ca & more.pem"));
        assert_eq!(one.files().collect::<Vec<_>>(), [path.as_path()]);
        let parsed = ConnectionString::parse(one.expose()).expect("valid");
        let Some(mongodb::options::Tls::Enabled(tls)) = parsed.tls else { panic!("{:?}", parsed.tls) };
        assert_eq!(tls.ca_file_path.as_deref(), Some(path.as_path()));
        assert!(one == uri());
        std::fs::write(&path, "two").expect("written");
        assert!(one != uri());
    }

    #[test]
    fn a_missing_file_is_named_and_the_password_is_not() {
        let text = "mongodb://me:s3cret@host/?tls=true&tlsCertificateKeyFile=no.pem";
        let problems = Uri::parse(text).expect("valid").with_files(Path::new("/nowhere"), None).expect_err("missing");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("tlsCertificateKeyFile") && problems[0].contains("/nowhere/no.pem"));
        assert!(!problems[0].contains("s3cret"));
    }

    #[test]
    fn options_that_belong_together_are_accepted_together() {
        let x509 = "mongodb://host/?tls=true&authMechanism=MONGODB-X509&authSource=$external";
        let tags = "mongodb://host/?readPreference=secondary&readPreferenceTags=dc:ny";
        for text in [x509, tags, "mongodb+srv://cluster.example/db?retryWrites=true&w=majority"] {
            assert_eq!(problems(text), Vec::<String>::new(), "{text}");
        }
    }
}
