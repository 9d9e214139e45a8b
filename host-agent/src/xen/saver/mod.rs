//! Whether the toolstack is working on a domain's memory.
//!
//! Xen tracks dirty pages for one reader at a time, and does not tell for whom.  If log-dirty mode is on
//! already, either a migration by the toolstack is running, which must not be disturbed, or its helper was
//! killed and left the mode on: `xl migrate`'s helper dies of SIGPIPE when the connection drops.  libxl runs
//! one process for each domain that it saves, which tells the two cases apart.

mod watch;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) use self::watch::Watch;

/// Where the kernel lists processes.
pub(crate) const PROC: &str = "/proc";
/// Name of libxl's helper, as the kernel cuts it off (`TASK_COMM_LEN`).
const HELPER: &[u8] = b"libxl-save-help";
const SAVES: &str = "--save-domain";
/// Position of the domain ID among its arguments (`run_helper` in `tools/libs/light/libxl_save_callout.c`).
const DOMAIN: usize = 4;

/// The libxl process that saves or migrates this domain, if there is one.
///
/// # Errors
/// If the processes cannot be listed.
pub(crate) fn saver(processes: &Path, domid: u16) -> io::Result<Option<u32>> {
    let domid = domid.to_string();
    for entry in fs::read_dir(processes)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that has exited meanwhile saves nothing.
        if !begins_with(&entry.path().join("comm"), HELPER) {
            continue;
        }
        // The toolstack runs as the same user as the agent; any user may give a program this name.
        let is_ours = |owner: fs::Metadata| owner.uid() == rustix::process::geteuid().as_raw();
        if !entry.metadata().is_ok_and(is_ours) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if arguments.get(1) == Some(&SAVES.as_bytes())
            && arguments.get(DOMAIN) == Some(&domid.as_bytes())
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Buffer size: small files suffice.  There is one for each process and they are read often, so one system
/// call less counts.
fn begins_with(path: &Path, bytes: &[u8]) -> bool {
    let mut head = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read(&mut head));
    read.is_ok_and(|read| head[..read].starts_with(bytes))
}

#[cfg(test)]
mod tests {
    use super::saver;
    use std::fs;

    #[test]
    fn the_helper_of_a_domain_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let process = |name: &str, comm: &str, line: &str| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("comm"), comm).unwrap();
            fs::write(folder.join("cmdline"), line.replace(' ', "\0")).unwrap();
        };
        let helper = "libxl-save-help\n";
        process("1", "systemd\n", "/sbin/init ");
        process("self", helper, "h --save-domain 11 -1 7 ");
        process("40", helper, "h --restore-domain 11 -1 7 1 ");
        process("41", helper, "h --save-domain 7 -1 12 1 0 0 ");
        process("42", "sh\n", "h --save-domain 11 -1 7 ");
        assert_eq!(saver(folder.path(), 7).unwrap(), None);
        assert_eq!(saver(folder.path(), 12).unwrap(), Some(41));
    }
}
