//! Migration by the stock toolstack: `xl migrate` on one host, `xl migrate-receive` on the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::host::Host;

/// Where the destination listens for the stream.
const PORT: u16 = 8002;
/// socat ends this long after one direction ended; the toolstacks still talk then.
const WAIT: &str = "-t600";
/// Bytes that socat moves at once; its own 8192 cost a system call each, dear in the emulator.
const PIECE: &str = "262144";
/// Waits until somebody listens on the port given as argument; the kernel's table has it in hexadecimal.
const LISTENS: &str = "while ! grep -q \": [0-9A-F]*:$(printf %04X \"$1\") 0*:0000 0A\" /proc/net/tcp; do sleep 0.1; done";

/// How a migration went.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Did the guest move, by the toolstack's own word?
    pub migrated: bool,
    /// From the command to its end.
    pub total: Duration,
    /// What the sending toolstack said.
    pub sender: String,
    /// What the receiving toolstack said.
    pub receiver: String,
}

impl Migration {
    /// Why it failed: the first line in which the sending toolstack complains.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.sender
            .lines()
            .find(|line| line.contains("error"))
            .unwrap_or("the toolstack gave no reason")
            .trim()
    }
}

/// Move a guest with `xl migrate` from a host to itself.
///
/// # Errors
/// If the host fails or the toolstack does not come to an end within the limit; a guest that does not
/// move is no error.
pub fn stock_within(guest: &str, host: &Host, limit: Duration) -> Result<Migration> {
    let begun = Instant::now();
    let sender = host.start(&["xl", "migrate", "-s", "", guest, "xl migrate-receive"])?;
    sender.end_input()?;
    let sent = sender.wait(host.patient(limit))?;
    Ok(Migration {
        migrated: sent.code == 0,
        total: begun.elapsed(),
        sender: sent.stderr + &sent.stdout,
        receiver: String::new(),
    })
}

/// Move a guest with `xl migrate`.
///
/// # Errors
/// If a host fails or the toolstack does not come to an end within the limit; a guest that does not
/// move is no error.
pub fn stock(guest: &str, from: &Host, to: &Host, limit: Duration) -> Result<Migration> {
    let listen = format!("TCP-LISTEN:{PORT},reuseaddr");
    let receiver = to.start(&[
        "socat",
        WAIT,
        "-b",
        PIECE,
        &listen,
        "EXEC:xl migrate-receive",
    ])?;
    to.ok(&["sh", "-c", LISTENS, "sh", &PORT.to_string()])?;
    let transport = format!("socat {WAIT} -b {PIECE} - TCP:{}:{PORT}", to.address());
    let begun = Instant::now();
    let sender = from.start(&["xl", "migrate", "-s", "", guest, &transport])?;
    sender.end_input()?;
    let sent = sender.wait(limit)?;
    let total = begun.elapsed();
    // A receiver whose sender gave up notices when the connection ends.
    let received = receiver.wait(Duration::from_secs(60));
    Ok(Migration {
        migrated: sent.code == 0,
        total,
        sender: sent.stderr + &sent.stdout,
        receiver: received.map_or_else(
            |error| error.to_string(),
            |output| output.stderr + &output.stdout,
        ),
    })
}
