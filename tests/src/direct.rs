//! Moves with the agent's command at one end or both, without its daemon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use unmoved_lab::Host;
use unmoved_lab::programs::Program;

/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Where the command is on a host.
pub const UNMOVED: &str = "/root/unmoved";
/// What receives a domain there.
pub const RECEIVE: &str = "/root/unmoved direct receive";
/// Xen's own receiver.
pub const XL_RECEIVE: &str = "xl migrate-receive";
const PORT: &str = "8003";
/// Waits until somebody listens on the port; the kernel's table has it in hexadecimal.
const LISTENS: &str = "while ! grep -q \": [0-9A-F]*:$(printf %04X \"$1\") 0*:0000 0A\" /proc/net/tcp; do sleep 0.1; done";

/// What the sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// `unmoved direct send`.
    Unmoved,
    /// `xl migrate`.
    Xl,
}

/// Puts the command on a host.
///
/// # Errors
/// If it does not build.
pub fn install(host: &Host) -> Result<()> {
    host.copy_in(&Program::Unmoved.build()?, UNMOVED)
}

/// Moves a guest with a sender of one's choice to a receiver of one's choice; the time it took.
///
/// # Errors
/// If the guest does not move; with what both ends said.
pub fn by(sender: Sender, receiver: &str, guest: &str, from: &Host, to: &Host) -> Result<Duration> {
    let listen = format!("TCP-LISTEN:{PORT},reuseaddr");
    let receive = format!("EXEC:{receiver}");
    let receiving = to.start(&["socat", "-t600", "-b", "262144", &listen, &receive])?;
    to.ok(&["sh", "-c", LISTENS, "sh", PORT])?;
    let via = format!("socat -t600 -b 262144 - TCP:{}:{PORT}", to.address());
    let words = match sender {
        Sender::Unmoved => vec![UNMOVED, "--json", "direct", "send", guest, &via],
        Sender::Xl => vec!["xl", "migrate", "-s", "", guest, &via],
    };
    let begun = Instant::now();
    let sending = from.start(&words)?;
    sending.end_input()?;
    let sent = sending.wait(MOVE)?;
    let total = begun.elapsed();
    let received = receiving.wait(Duration::from_secs(300));
    let received = received.context("the receiver did not end")?;
    ensure!(
        sent.code == 0,
        "{guest} did not move: {}{}; the receiver: {}",
        sent.stderr,
        sent.stdout,
        received.stderr
    );
    Ok(total)
}
