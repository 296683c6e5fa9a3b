//! The command line: one file a command.

mod act;
mod check;
mod client;
mod dead_letters;
mod logs;
mod progress;
mod run;
mod status;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::Config;
use crate::config::environment::Variables;

/// What a command ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it should.
    Done,
    /// It failed.
    Failed,
    /// It was called wrongly, or its configuration is wrong.
    Usage,
    /// A verification found differences.
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

/// Keeps edge MongoDB replica sets and a central one in step, each with the zones it needs.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything, until SIGTERM or SIGINT. SIGHUP reads the configuration again.
    Run(ConfigArgument),
    /// Look at the configuration and at every server: what is well, and what is to be done.
    Check(ConfigArgument),
    /// Prove that hub and spokes hold the same documents, or list and mend what differs. Exit code 0: equal; 3: not; 1: it cannot be
    /// told.
    Verify {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        arguments: verify::Arguments,
    },
    /// Show hub and spokes, as the running process sees them.
    Status {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        options: status::Options,
    },
    /// Show an actor's log.
    Logs {
        #[command(flatten)]
        config: ConfigArgument,
        #[command(flatten)]
        options: logs::Options,
    },
    /// Print a script that completes commands in a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Stop a spoke's links, until they are resumed.
    Pause(ZoneArguments),
    /// Let a paused spoke go on.
    Resume(ZoneArguments),
    /// Begin anew from the checkpoints, at once.
    Restart(ZoneArguments),
    /// Compare everything with the hub, and bring what differs.
    Resync {
        #[command(flatten)]
        spoke: ZoneArguments,
        /// Wait until it is done, and show how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Show what was refused, and say what becomes of it.
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
    /// The spoke's zone.
    zone: String,
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration [default: spokes.toml if there is one, else the environment].
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    /// Runs a command with the configuration; its error goes to standard error.
    fn with(&self, command: impl FnOnce(&Config) -> anyhow::Result<()>) -> Exit {
        match self.load().map(|config| command(&config)) {
            Ok(Ok(())) => Exit::Done,
            Ok(Err(error)) => {
                eprintln!("{error:#}");
                Exit::Failed
            }
            Err(exit) => exit,
        }
    }

    /// The configuration, or its problems on standard error.
    fn load(&self) -> Result<Config, Exit> {
        crate::config::load(self.config.as_deref(), &Variables::of_this_process()).map_err(|invalid| {
            eprintln!("{invalid}");
            Exit::Usage
        })
    }
}

/// Does what the arguments say.
pub fn main() -> Exit {
    // clap ends the process itself where the arguments are wrong, with the same exit code as ours.
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
        Command::DeadLetters { config, wanted } => config.with(|config| dead_letters::run(config, &wanted)),
    }
}

impl ZoneArguments {
    fn act(&self, action: &str) -> Exit {
        self.config.with(|config| act::run(config, action, &self.zone))
    }
}
