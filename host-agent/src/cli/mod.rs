//! The command `unmoved`: one module for each family of subcommands.
//!
//! Each does its work through the library and prints for people, or JSON with `--json`; a failure is one
//! line on standard error and exit status 1.

mod agent;
mod direct;
mod papers;
mod show;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Moves Xen guests that will not help.
#[derive(Debug, Parser)]
#[command(name = "unmoved", version)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    socket: agent::Socket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Agent(agent::Command),
    /// Make certificates for agents
    #[command(subcommand)]
    Pki(papers::Pki),
    /// Print a script that completes commands, for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// Where to
        folder: PathBuf,
    },
    /// Verify, list and convert save files and migration streams
    #[command(subcommand)]
    Stream(stream::Command),
    /// Move a domain with no agent at the other end: a file, or Xen's own tools
    #[command(subcommand)]
    Direct(direct::Command),
}

/// Runs the command with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Agent(command) => command.run(&arguments.socket, arguments.json),
        Command::Pki(command) => command.run(arguments.json),
        Command::Completions { shell } => {
            papers::completions::<Arguments>(shell);
            Ok(())
        }
        Command::Man { folder } => papers::man::<Arguments>(&folder),
        Command::Stream(command) => command.run(arguments.json),
        Command::Direct(command) => command.run(arguments.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, the reasons after colons.
            eprintln!("unmoved: {error:#}");
            ExitCode::FAILURE
        }
    }
}
