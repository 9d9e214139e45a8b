//! The command `unmoved`: one module for each family of subcommands.
//!
//! Each command uses the library and prints text, or JSON with `--json`.  A failure is one line on standard
//! error, or a JSON object with `error`, and exit status 1.  Unknown arguments are reported in the same way,
//! with exit status 2.

mod agent;
mod direct;
mod doctor;
mod generate;
mod show;
mod socket;
mod stream;
mod watch;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::text::clean;

/// Longest error message that is shown.
const LINE_MOST: usize = 8 << 10;

/// Migrates Xen guests that do not cooperate
#[derive(Debug, Parser)]
#[command(name = "unmoved", version)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    socket: socket::Socket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Agent(agent::Command),
    /// Create certificates for agents
    #[command(subcommand)]
    Pki(generate::Pki),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// Folder to write to
        folder: PathBuf,
    },
    /// Verify, list and convert save files and migration streams
    #[command(subcommand)]
    Stream(stream::Command),
    /// Migrate a domain with no agent at the other end: to a file, or with Xen's own tools
    #[command(subcommand)]
    Direct(direct::Command),
}

/// Runs the command with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() && asks_for_json(env::args_os()) => {
            eprintln!("{}", object(error.to_string().trim_end()));
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
        Err(error) => error.exit(),
    };
    // Only `unmoved direct` logs here.  Programs get nothing but their JSON object, unless they ask for more.
    let default = if arguments.json { "off" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default)).init();
    let result = match arguments.command {
        Command::Agent(command) => command.run(&arguments.socket, arguments.json),
        Command::Pki(command) => command.run(arguments.json),
        Command::Completions { shell } => {
            generate::completions::<Arguments>(shell);
            Ok(())
        }
        Command::Man { folder } => generate::man::<Arguments>(&folder),
        Command::Stream(command) => command.run(arguments.json),
        Command::Direct(command) => command.run(arguments.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, with the causes after colons.
            let text = format!("{error:#}");
            if arguments.json {
                eprintln!("{}", object(&text));
            } else {
                eprintln!("unmoved: {}", clean(&text, LINE_MOST));
            }
            ExitCode::FAILURE
        }
    }
}

/// A failure for programs.
fn object(error: &str) -> Value {
    json!({ "error": error })
}

/// Looks at the raw arguments, because they could not be parsed.  Nothing after `--` is an option.
fn asks_for_json(words: impl Iterator<Item = OsString>) -> bool {
    words
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::asks_for_json;

    #[test]
    fn json_is_an_option_up_to_the_two_hyphens() {
        let asks = |words: &str| asks_for_json(words.split(' ').map(OsString::from));
        assert!(asks("unmoved --json nonsense"));
        assert!(asks("unmoved nonsense --json"));
        assert!(!asks("unmoved nonsense -- --json"));
        assert!(!asks("unmoved nonsense"));
    }
}
