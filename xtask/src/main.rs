//! The project's own commands, run as `cargo xtask …`; each sets up by itself what it needs.

mod lab;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Unmoved's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download what the lab needs and make its images
    Setup(setup::Setup),
    /// Use the lab by hand
    #[command(subcommand)]
    Lab(lab::Command),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(setup) => setup.run(),
        Command::Lab(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence, the reasons after colons; never a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
