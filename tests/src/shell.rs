//! A Debian guest by hand: to its login prompt, in at its console, and commands there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use unmoved_lab::{Config, DebianRoot, Guest, Host, Log};

/// Longest time from creation to a login prompt, on a loaded machine.
pub const BOOT: Duration = Duration::from_secs(600);
/// Longest time of anything that takes a moment in the guest.
pub const MOMENT: Duration = Duration::from_secs(180);

/// One host whose private disk has the Debian root (see `GuestPlan::debian`).
///
/// # Errors
/// If the root cannot be made.
pub fn host_with_debian() -> Result<Config> {
    let mut config = Config::hosts(1);
    config.disk = Some(DebianRoot::get()?.image());
    Ok(config)
}

/// What a command in the guest did.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its exit code.
    pub code: i32,
    /// What it said, on both its outputs; kernel messages may be among it.
    pub text: String,
}

/// A shell on a guest's console.
#[derive(Debug)]
pub struct Shell<'a> {
    host: &'a Host,
    guest: &'a Guest,
    commands: u32,
}

impl<'a> Shell<'a> {
    /// Wait for the login prompt and log in as root.
    ///
    /// # Errors
    /// If the guest does not get there, or does not let us in.
    pub fn login(host: &'a Host, guest: &'a Guest) -> Result<Self> {
        guest.wait_for("login: ", BOOT)?;
        let mark = guest.console.mark();
        guest.type_line(host, "root")?;
        guest
            .console
            .wait_for_after(mark, "bash[^\r\n]*# ", MOMENT)
            .context("after the login")?;
        let mark = guest.console.mark();
        // No line editor, no echo: what comes back is what commands say.
        guest.type_line(host, "exec env PS1='ready> ' sh")?;
        guest
            .console
            .wait_for_after(mark, "[\r\n]ready> ", MOMENT)?;
        let mut shell = Self {
            host,
            guest,
            commands: 0,
        };
        shell.ok("stty -echo; PS1=; PS2=; cd /tmp", MOMENT)?;
        Ok(shell)
    }

    /// Run a command line to its end.
    ///
    /// # Errors
    /// If it does not end within the limit.
    pub fn run(&mut self, line: &str, limit: Duration) -> Result<Done> {
        self.commands += 1;
        let number = self.commands;
        let mark = self.guest.console.mark();
        // The number is not beside the bracket in what is typed, so an echo is no end.
        let typed = format!("{line}\nprintf '\\n<%s=%s>\\n' {number} $?");
        self.guest.type_line(self.host, &typed)?;
        let end = self
            .guest
            .console
            .wait_for_after(mark, &format!(r"<{number}=\d+>"), limit)
            .with_context(|| format!("`{line}` in guest {}", self.guest.name))?;
        let code = end
            .trim_matches(['<', '>'])
            .rsplit('=')
            .next()
            .and_then(|code| code.parse().ok())
            .context("no exit code")?;
        let text = after(&self.guest.console, mark).replace('\r', "");
        let text = text.split(&end).next().unwrap_or_default().trim();
        Ok(Done {
            code,
            text: text.to_owned(),
        })
    }

    /// Run a command line that must succeed; what it said.
    ///
    /// # Errors
    /// If it does not succeed within the limit.
    pub fn ok(&mut self, line: &str, limit: Duration) -> Result<String> {
        let done = self.run(line, limit)?;
        ensure!(
            done.code == 0,
            "guest {}: `{line}` failed with {}: {}",
            self.guest.name,
            done.code,
            done.text
        );
        Ok(done.text)
    }

    /// What the guest's kernel finds wrong with itself or its machine, a line each.
    ///
    /// # Errors
    /// If the guest does not answer.
    pub fn kernel_complaints(&mut self) -> Result<Vec<String>> {
        let text = self.ok(KERNEL_COMPLAINTS, MOMENT)?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

const KERNEL_COMPLAINTS: &str = "dmesg | grep -E 'BUG:|WARNING: CPU|Oops|general protection fault|\
    I/O error|self-detected stall|blocked for more than|Bad page|Call Trace' || true";

/// What a shim has warned of or called an error since `mark` of the host's serial console.
#[must_use]
pub fn shim_complaints(serial: &Log, mark: usize) -> Vec<String> {
    complaints(&after(serial, mark))
}

fn complaints(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.contains("unmoved W ") || line.contains("unmoved E "))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

fn after(log: &Log, mark: usize) -> String {
    String::from_utf8_lossy(log.bytes().get(mark..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::complaints;

    #[test]
    fn warnings_and_errors_are_complaints() {
        let text =
            "(d1) unmoved I guest starts\r\n(d1) unmoved W odd\r\n(XEN) x\n(d1) unmoved E bad\r\n";
        assert_eq!(
            complaints(text),
            ["(d1) unmoved W odd", "(d1) unmoved E bad"]
        );
    }
}
