//! Child processes that end with this process.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A running program. Drop kills the program, and the kernel does if this process dies first.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program without input. The output is appended to the file.
    ///
    /// # Errors
    /// If the program cannot be started.
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

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// If the program has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("the process id is too large")?;
        signal::kill(Pid::from_raw(id), signal).with_context(|| format!("cannot send {signal} to process {id}"))
    }

    /// Kills the program immediately, and waits for its end.
    ///
    /// # Errors
    /// If the program cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the program")?;
        self.child.wait().context("cannot wait for the program")?;
        Ok(())
    }

    /// The exit code if the program has ended. The inner `None` means an end by a signal.
    ///
    /// # Errors
    /// If the operating system does not report the state.
    pub fn exit(&mut self) -> Result<Option<Option<i32>>> {
        Ok(self.child.try_wait().context("cannot wait for the program")?.map(|status| status.code()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// Wraps the command, so that the kernel kills the program when the thread that started the program ends.
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

/// Starts the command from a thread that lives as long as this process, because the threads of tests end much earlier.
fn spawn(command: Command) -> Started {
    static STARTER: OnceLock<mpsc::Sender<(Command, mpsc::Sender<Started>)>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, commands) = mpsc::channel::<(Command, mpsc::Sender<Started>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in commands {
                // The caller below waits for the reply.
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
