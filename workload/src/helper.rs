//! The same program once more, for what must have a process with a single thread: how it is started.

use std::io;
use std::process::{Command, Stdio};

/// This program.
pub const PROGRAM: &str = "/proc/self/exe";
/// The argument that makes it a helper; the helper's name follows.
pub const MARK: &str = "--helper";

/// A command that runs the helper `name`.
#[must_use]
pub fn command(name: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg(MARK).arg(name).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// What the helper `name` prints.
///
/// # Errors
/// If it can not be started, fails, or prints what is not text.
pub fn output(name: &str) -> io::Result<String> {
    output_with(name, &[])
}

/// [`output`], with arguments.
///
/// # Errors
/// As [`output`].
pub fn output_with(name: &str, arguments: &[String]) -> io::Result<String> {
    let output = command(name, arguments).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "helper {name} ended with {}",
            output.status
        )));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
