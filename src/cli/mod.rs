//! The command line: one file a command.

mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
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
    /// Run everything, until SIGTERM or SIGINT.
    Run(ConfigArgument),
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration [default: spokes.toml if there is one, else the environment].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgument {
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
    }
}
