//! The command line: arguments to command to exit code. Each command has a file.

mod act;
mod check;
mod client;
mod dead_letters;
mod logs;
mod progress;
mod run;
mod servers;
mod set_aside;
mod shown;
mod status;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::Config;
use crate::config::environment::Variables;

/// The result of a command, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: success.
    Done,
    /// 1: failure, or a verification without a result.
    Failed,
    /// 2: wrong arguments or configuration.
    Usage,
    /// 3: a verification found differences.
    Different,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Different => 3,
        })
    }
}

/// Keep edge MongoDB replica sets (spokes) and a central one (hub) in step, each spoke with its zones.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the sync until SIGTERM or SIGINT.
    ///
    /// SIGHUP reads the configuration file again; a file with errors changes nothing. SIGTERM and SIGINT finish the
    /// batches under way within 10 seconds. Exit code 0: all links stopped in time; 1: some did not; 2: the
    /// configuration is wrong.
    Run(ConfigArgument),
    /// Check the configuration and every server.
    ///
    /// Prints one line per finding: ok, warning or error, with advice. Exit code 0: no errors; 1: errors at a server;
    /// 2: the configuration is wrong.
    Check(ConfigArgument),
    /// Verify that hub and spokes hold the same documents, byte by byte.
    ///
    /// Needs no running process and disturbs none. Lists the documents that differ; --repair mends them. An interrupted
    /// verification resumes if the same command starts again within a day. Exit code 0: equal; 3: different; 1:
    /// inconclusive, because a server is away, a zone is not copied yet, or changes are on their way and no process
    /// carries them.
    Verify {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        arguments: verify::Arguments,
    },
    /// Show the state of hub and spokes in the running process.
    ///
    /// The columns: state; lag and changes applied of both links; time until a checkpoint leaves its source's oplog;
    /// number of dead letters.
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        options: status::Options,
    },
    /// Show the log of one actor, or of all actors.
    ///
    /// The running process keeps the newest 200 lines of each actor, at most 32 kB, and the same of all actors
    /// together.
    Logs {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        options: logs::Options,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Name of the shell.
        shell: clap_complete::Shell,
    },
    /// Pause both links of a spoke.
    ///
    /// The links finish the batches under way, and then wait for a resume. Changes stay in the oplogs meanwhile. A
    /// pause ends with the process.
    Pause(ZoneArguments),
    /// Resume both links of a paused spoke from their checkpoints.
    Resume(ZoneArguments),
    /// Restart both links of a spoke from their checkpoints.
    ///
    /// The links start immediately, without the delay that follows a failure.
    Restart(ZoneArguments),
    /// Compare all documents of a spoke with the hub's, and apply the differences.
    ///
    /// The other spokes go on. A resync reads all documents of the spoke.
    Resync {
        #[command(flatten)]
        spoke: ZoneArguments,
        /// Wait until the resync is finished, and show its progress.
        #[arg(long)]
        wait: bool,
    },
    /// List, show or restore versions of documents that links have deleted or replaced.
    ///
    /// Needs no running process.
    SetAside {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(subcommand)]
        wanted: set_aside::AsideCommand,
    },
    /// List, retry or drop dead letters: changes that a destination refused.
    DeadLetters {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(subcommand)]
        wanted: dead_letters::LetterCommand,
    },
}

#[derive(clap::Args)]
struct ZoneArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Zone of the spoke.
    zone: String,
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// Configuration file [default: spokes.toml if present, else the environment variables ZONENAME, WATCHZONES,
    /// CONSTREDGE and CONSTRFAR].
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    /// Runs a command with the configuration, and prints an error to standard error.
    fn with(&self, command: impl FnOnce(&Config) -> anyhow::Result<()>) -> Exit {
        match self.load().map(|config| command(&config)) {
            Ok(Ok(())) => Exit::Done,
            Ok(Err(error)) => {
                eprintln!("{}", shown::shown_lines(&format!("{error:#}")));
                Exit::Failed
            }
            Err(exit) => exit,
        }
    }

    /// Reads the configuration, or prints its problems to standard error.
    fn load(&self) -> Result<Config, Exit> {
        crate::config::load(self.config.as_deref(), &Variables::of_this_process()).map_err(|invalid| {
            eprintln!("{invalid}");
            Exit::Usage
        })
    }
}

/// Runs the command that the process's arguments name.
pub fn main() -> Exit {
    // Wrong arguments end the process inside clap, with exit code 2 as well.
    match Arguments::parse().command {
        Command::Run(config) => config.load().map_or_else(|exit| exit, |config| run::run(&config)),
        Command::Check(config) => config.load().map_or_else(|exit| exit, |config| check::run(&config)),
        Command::Verify { config, arguments } => {
            config.load().map_or_else(|exit| exit, |config| verify::run(&config, &arguments))
        }
        Command::Status { config, options } => config.with(|config| status::run(config, &options)),
        Command::Logs { config, options } => config.with(|config| logs::run(config, &options)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "spokesync", &mut std::io::stdout());
            Exit::Done
        }
        Command::Pause(arguments) => arguments.act("pause"),
        Command::Resume(arguments) => arguments.act("resume"),
        Command::Restart(arguments) => arguments.act("restart"),
        Command::Resync { spoke, wait: false } => spoke.act("resync"),
        Command::Resync { spoke, wait: true } => spoke.config.with(|config| {
            act::run(config, "resync", &spoke.zone)?;
            act::wait_for_resync(config, &spoke.zone)
        }),
        Command::SetAside { config, wanted } => config.with(|config| set_aside::run(config, &wanted)),
        Command::DeadLetters { config, wanted } => config.with(|config| dead_letters::run(config, &wanted)),
    }
}

impl ZoneArguments {
    fn act(&self, action: &str) -> Exit {
        self.config.with(|config| act::run(config, action, &self.zone))
    }
}
