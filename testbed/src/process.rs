//! Programs that do not outlive this one.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A running program. Dropping it kills it; and the kernel does, if this process dies first.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that reads nothing and writes to this file, at its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &Command, output: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(output);
        let output = open().and_then(|file| Ok((file.try_clone()?, file)));
        let (out, error) = output.context("cannot write the program's output")?;
        let mut command = tied(command);
        command.stdin(Stdio::null()).stdout(out).stderr(error);
        let shown = format!("{command:?}");
        let child = spawn(command).with_context(|| format!("cannot start {shown}"))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("a process id")?;
        signal::kill(Pid::from_raw(id), signal).with_context(|| format!("cannot send {signal} to process {id}"))
    }

    /// Kills it at once, and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait")?;
        Ok(())
    }

    /// Its exit code, if it has ended; `None` in it if it ended by a signal.
    ///
    /// # Errors
    /// If the operating system does not tell.
    pub fn exit(&mut self) -> Result<Option<Option<i32>>> {
        Ok(self.child.try_wait().context("cannot wait")?.map(|status| status.code()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// The command, such that the kernel kills it when the thread that starts it ends.
fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    tied
}

type Started = std::io::Result<Child>;

/// Starts the command from one thread that lives as long as this process: tests end their threads much earlier.
fn spawn(command: Command) -> Started {
    static STARTER: OnceLock<mpsc::Sender<(Command, mpsc::Sender<Started>)>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, commands) = mpsc::channel::<(Command, mpsc::Sender<Started>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in commands {
                // Whoever asked waits for the reply.
                drop(reply.send(command.spawn()));
            }
        });
        sender
    });
    let (reply, started) = mpsc::channel();
    let gone = || std::io::Error::other("the thread that starts programs is gone");
    starter.send((command, reply)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}
