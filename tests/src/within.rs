//! Moves within one host: save and restore, a save that the guest outlives, a migration to the same
//! host.  They are quick, so what may go wrong in a move is tried here.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use unmoved_lab::migrate;
use unmoved_lab::{Guest, Host};

/// Longest time of a move, on a loaded machine.
pub const MOVE: Duration = Duration::from_secs(900);
/// Longest time of anything that takes a moment in the guest.
pub const MOMENT: Duration = Duration::from_secs(300);
/// Where saved guests are put: the host's own disk, larger than its memory.
pub const FILE: &str = "/dev/vdb";

/// A way to move a guest within its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `xl save -c`: it is saved, and goes on in its domain.
    Checkpoint,
    /// `xl save`, then `xl restore`.
    SaveRestore,
    /// `xl migrate` to the same host, which host-only designs can not do.
    Migrate,
}

impl Way {
    /// Move the guest, and follow its console where it goes on.
    ///
    /// # Errors
    /// If it does not move, with what the toolstack said.
    pub fn go(self, guest: Guest, host: &Host) -> Result<Guest> {
        let name = guest.name.clone();
        match self {
            Self::Checkpoint => {
                host.ok(&["xl", "save", "-c", &name, FILE])?;
                Ok(guest)
            }
            Self::SaveRestore => {
                drop(guest);
                host.ok(&["xl", "save", &name, FILE])?;
                restore(&name, host)
            }
            Self::Migrate => {
                drop(guest);
                clear_console(host, &name)?;
                let back = Guest::attach_incoming(&name, host)?;
                let migration = migrate::stock_within(&name, host, MOVE)?;
                ensure!(migration.migrated, "{name}: {}", migration.sender);
                Ok(back)
            }
        }
    }
}

/// Restore the guest that was saved to [`FILE`], and follow its console.
///
/// # Errors
/// If it is not restored, with what the toolstack said.
pub fn restore(name: &str, host: &Host) -> Result<Guest> {
    clear_console(host, name)?;
    let back = Guest::attach(name, host)?;
    host.ok(&["xl", "restore", FILE])?;
    Ok(back)
}

/// What the guest's console said before it moved is no sign of life.
fn clear_console(host: &Host, name: &str) -> Result<()> {
    host.sh(&format!("rm -f /var/log/xen/console/guest-{name}*.log"))
        .map(drop)
}

/// Wait until the shim of a guest reports a value below `data/unmoved/` that `wanted` accepts.
///
/// # Errors
/// If it does not within the limit; the error has what it reported last.
pub fn reported(
    host: &Host,
    guest: &str,
    key: &str,
    limit: Duration,
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    let limit = host.patient(limit);
    let end = Instant::now() + limit;
    let script = "xenstore-read \"/local/domain/$(xl domid \"$1\")/data/unmoved/$2\"";
    loop {
        let read = host.run(&["sh", "-c", script, "sh", guest, key])?;
        let value = read.stdout.trim();
        if read.code == 0 && wanted(value) {
            return Ok(value.to_owned());
        }
        ensure!(
            Instant::now() < end,
            "{guest}: data/unmoved/{key} is {value:?} after {} s: {}",
            limit.as_secs(),
            read.stderr.trim()
        );
    }
}
