//! A replica set with a single `mongod`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::ClientOptions;
use nix::sys::signal::Signal;

use crate::mongod;
use crate::process::Process;

/// Time limit for a server to become primary.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Options for the start of a node.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The port; by default any free port.
    pub port: Option<u16>,
    /// The size of the oplog in megabytes. The server's minimum is 990, except with `enableTestCommands`, as here.
    pub oplog_megabytes: Option<u32>,
    /// The name of the replica set; by default `rs`.
    pub replica_set: Option<String>,
    /// The address to listen on; by default 127.0.0.1.
    pub bind: Option<String>,
    /// Requires users to log in. The administrator is `root` with the password `secret`.
    pub users: bool,
    /// The size of the cache in gigabytes; by default 0.5.
    pub cache_gigabytes: Option<f32>,
    /// Further arguments of `mongod`.
    pub arguments: Vec<String>,
}

/// A running replica set of one node. Drop ends the server and removes its temporary folder.
#[derive(Debug)]
pub struct Node {
    port: u16,
    folder: PathBuf,
    options: Options,
    process: Option<Process>,
}

impl Node {
    /// Starts a node, and waits until the node is primary.
    ///
    /// # Errors
    /// If no `mongod` is found, or the server does not start.
    pub async fn start(name: &str, options: Options) -> Result<Self> {
        let node = Self::launch(name, options)?;
        node.initiate(&[node.host()]).await?;
        node.wait_for_primary().await?;
        if node.options.users {
            let root = doc! { "createUser": "root", "pwd": "secret", "roles": ["root"] };
            let admin = node.direct_client().await?.database("admin");
            admin.run_command(root).await.context("cannot create the administrator")?;
        }
        Ok(node)
    }

    /// Starts a server that belongs to no replica set yet.
    pub(crate) fn launch(name: &str, options: Options) -> Result<Self> {
        let port = match options.port {
            Some(port) => port,
            None => free_port()?,
        };
        let mut node = Self { port, folder: new_folder(name)?, options, process: None };
        node.run()?;
        Ok(node)
    }

    /// Initiates a replica set of these members, which include this node.
    pub(crate) async fn initiate(&self, hosts: &[String]) -> Result<()> {
        let admin = self.direct_client().await?.database("admin");
        let members = (0..).zip(hosts).map(|(id, host): (i32, _)| doc! { "_id": id, "host": host });
        let set = doc! { "_id": self.replica_set(), "members": members.collect::<Vec<_>>() };
        self.until("the set is initiated", async || {
            let done = admin.run_command(doc! { "replSetInitiate": set.clone() }).await;
            // The set may have been initiated by the call before.
            const ALREADY_INITIALIZED: i32 = 23;
            Ok(done.map_or_else(|error| code(&error) == Some(ALREADY_INITIALIZED), |_| true))
        })
        .await
    }

    /// Host and port of the node.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// True if the node is primary now.
    pub(crate) async fn is_primary(&self) -> bool {
        let Ok(client) = self.direct_client().await else { return false };
        let hello = client.database("admin").run_command(doc! { "hello": 1 }).await;
        hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false))
    }

    /// The connection string.
    pub fn uri(&self) -> String {
        self.uri_of(if self.options.users { "root:secret@" } else { "" })
    }

    /// The connection string of a user, given as `name:password@`.
    pub fn uri_of(&self, user: &str) -> String {
        format!("mongodb://{user}127.0.0.1:{}/?replicaSet={}", self.port, self.replica_set())
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// A new client.
    ///
    /// # Errors
    /// If the connection string is invalid.
    pub async fn client(&self) -> Result<Client> {
        let mut options = ClientOptions::parse(self.uri()).await?;
        options.server_selection_timeout = Some(START_LIMIT);
        Ok(Client::with_options(options)?)
    }

    /// Makes the server treat the program's next commands as `data` says (`failCommand`), so many times.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn fail(&self, times: i32, mut data: Document) -> Result<Document> {
        data.insert("appName", "spokesync");
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data }).await
    }

    /// Runs an admin command, such as `configureFailPoint`.
    ///
    /// # Errors
    /// If the command fails.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        Ok(self.client().await?.database("admin").run_command(command).await?)
    }

    /// Kills the server without warning, like a power cut.
    ///
    /// # Errors
    /// If the server is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the server is not running")?.kill()
    }

    /// Restarts the server on the same data, and waits until the server is primary.
    ///
    /// # Errors
    /// If the server does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.run()?;
        self.wait_for_primary().await
    }

    /// Copies the data while the server is stopped, and starts the server again.
    ///
    /// # Errors
    /// If the server does not stop or start, or the data cannot be copied.
    pub async fn back_up(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the server is not running")?;
        process.signal(Signal::SIGTERM)?;
        self.until("the server has stopped", async || Ok(process.exit()?.is_some())).await?;
        copy_folder(&self.folder.join("data"), &self.folder.join("backup"))?;
        self.restart().await
    }

    /// Replaces the data by the newest copy, as after the loss of a disk, and starts the server again.
    ///
    /// # Errors
    /// If the server does not start, or the data cannot be copied.
    pub async fn restore(&mut self) -> Result<()> {
        self.kill()?;
        std::fs::remove_dir_all(self.folder.join("data")).context("cannot remove the data")?;
        copy_folder(&self.folder.join("backup"), &self.folder.join("data"))?;
        self.restart().await
    }

    /// Removes all data, and starts the server as a new replica set of the same name at the same address.
    ///
    /// # Errors
    /// If the server does not start, or the data cannot be removed.
    pub async fn wipe(&mut self) -> Result<()> {
        self.kill()?;
        let data = self.folder.join("data");
        std::fs::remove_dir_all(&data).and_then(|()| std::fs::create_dir(&data)).context("cannot remove the data")?;
        self.run()?;
        self.initiate(&[self.host()]).await?;
        self.wait_for_primary().await
    }

    /// Freezes the server: connections stay open, and no request is answered.
    ///
    /// # Errors
    /// If the server is not running.
    pub fn freeze(&self) -> Result<()> {
        self.process.as_ref().context("the server is not running")?.signal(Signal::SIGSTOP)
    }

    /// Resumes a frozen server.
    ///
    /// # Errors
    /// If the server is not running.
    pub fn thaw(&self) -> Result<()> {
        self.process.as_ref().context("the server is not running")?.signal(Signal::SIGCONT)
    }

    fn replica_set(&self) -> &str {
        self.options.replica_set.as_deref().unwrap_or("rs")
    }

    fn run(&mut self) -> Result<()> {
        let mut command = Command::new(mongod::path()?);
        let bind = self.options.bind.as_deref().unwrap_or("127.0.0.1");
        command
            .args(["--port", &self.port.to_string(), "--bind_ip", bind, "--replSet", self.replica_set()])
            .arg("--dbpath")
            .arg(self.folder.join("data"))
            .arg("--logpath")
            .arg(self.folder.join("mongod.log"))
            .args(["--logappend", "--nounixsocket", "--wiredTigerCacheSizeGB"])
            .arg(self.options.cache_gigabytes.unwrap_or(0.5).to_string())
            .args(["--setParameter", "enableTestCommands=1"])
            .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
            .args(&self.options.arguments);
        if self.options.users {
            let key = self.folder.join("key");
            std::fs::write(&key, "known to the members of the set alone").context("cannot write the key")?;
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).context("cannot guard the key")?;
            command.arg("--keyFile").arg(key);
        }
        if let Some(megabytes) = self.options.oplog_megabytes {
            command.args(["--oplogSize", &megabytes.to_string()]);
        }
        self.process = Some(Process::start(&command, &self.folder.join("mongod.out"))?);
        Ok(())
    }

    async fn wait_for_primary(&self) -> Result<()> {
        self.until("the node is primary", async || Ok(self.is_primary().await)).await
    }

    /// A new client that asks this server whatever it says of its replica set, and gives up after a second.
    ///
    /// # Errors
    /// If the connection string is invalid.
    pub async fn direct_client(&self) -> Result<Client> {
        let mut options =
            ClientOptions::parse(format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)).await?;
        options.server_selection_timeout = Some(Duration::from_secs(1));
        Ok(Client::with_options(options)?)
    }

    pub(crate) async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !is_so().await? {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.folder.join("mongod.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                bail!(
                    "mongod on port {}: timed out waiting until {what}; the log ends with\n{}",
                    self.port,
                    last.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The server must end before the files are removed.
        drop(self.process.take());
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

fn code(error: &mongodb::error::Error) -> Option<i32> {
    match error.kind.as_ref() {
        mongodb::error::ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

/// A port that is free at the moment.
///
/// # Errors
/// If the operating system has no free port.
pub fn free_port() -> Result<u16> {
    // The system may name a port twice before its server listens there.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
        let port = listener.local_addr()?.port();
        if given.insert(port) {
            return Ok(port);
        }
    }
}

/// Creates a folder for a server, below the system's temporary folder. The first call removes the folders of ended
/// processes.
fn new_folder(name: &str) -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let base = std::env::temp_dir().join("spokesync-testbed");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        remove_leftovers(&base);
    }
    let folder = base.join(format!("{}-{number}-{name}", std::process::id()));
    std::fs::create_dir_all(folder.join("data")).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().context("cannot run cp")?;
    if !copied.success() {
        bail!("cannot copy {}", from.display());
    }
    Ok(())
}

fn remove_leftovers(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()).unwrap_or_default();
        if !Path::new("/proc").join(owner).exists()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}
