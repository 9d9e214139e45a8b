//! Process 1: sets the system up, starts the worker, starts it again if it dies, buries orphans.

#![expect(unsafe_code, reason = "dup2 gives descriptors new owners")]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::modules;
use crate::helper;
use crate::orders::BootOrders;
use crate::report::Reporter;
use crate::sys::{check, system, task};

/// The argument that makes this program the worker.
pub const WORKER: &str = "--worker";
/// The argument after it that says that it is not the first one.
pub const AGAIN: &str = "again";

/// Kernel messages of this level and below stay off the console, where they would tear reports
/// apart; errors still come.
const CONSOLE_LEVEL: u64 = 4;

/// Never returns but for what makes going on senseless.
pub fn run() -> io::Error {
    let mut failed = mount_all(&[("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")]);
    if let Err(error) = take_console() {
        failed.push(("console".into(), error));
    }
    failed.extend(modules::load_all(Path::new(modules::FOLDER)));
    // Not on every machine; xenfs may have come as a module.
    let _ = mount_all(&[("debugfs", "/sys/kernel/debug"), ("xenfs", "/proc/xen")]);

    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let settings = BootOrders::from_cmdline(&cmdline).settings;
    let level = settings
        .number("loglevel", CONSOLE_LEVEL, 1..=8)
        .unwrap_or(CONSOLE_LEVEL);
    let _ = system::console_level(u8::try_from(level).unwrap_or(4));

    let reporter = Reporter::new(io::stdout());
    for (what, error) in failed {
        reporter.error(&format!("boot: {what}"), error);
    }
    keep_alive(&reporter)
}

/// Starts workers for ever.
fn keep_alive(reporter: &Reporter) -> io::Error {
    let mut deaths = 0_u64;
    loop {
        let mut command = Command::new(helper::PROGRAM);
        command.arg(WORKER);
        if deaths > 0 {
            command.arg(AGAIN);
        }
        let worker = match command.spawn() {
            Ok(worker) => libc::pid_t::try_from(worker.id()).unwrap_or(-1),
            Err(error) => {
                reporter.error("boot: worker", error);
                -1
            }
        };
        // Everybody's orphans come here too; only the worker's end matters.
        loop {
            match task::wait_for(-1) {
                Ok((pid, status)) if pid == worker => {
                    deaths += 1;
                    let code = task::exit_code(status);
                    reporter.event("worker-died", json!({ "code": code, "deaths": deaths }));
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn mount_all(mounts: &[(&str, &str)]) -> Vec<(String, io::Error)> {
    mounts
        .iter()
        .filter_map(|(kind, target)| {
            let done = fs::create_dir_all(target).and_then(|()| system::mount(kind, target));
            match done {
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                    Some(((*kind).to_owned(), error))
                }
                _ => None,
            }
        })
        .collect()
}

/// Makes the console standard input, output and error: the kernel does so only if the initramfs
/// had a device node for it.
fn take_console() -> io::Result<()> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    for number in 0..3 {
        // SAFETY: both descriptors are open or, the second, free; neither is memory.
        check(unsafe { libc::dup2(console.as_raw_fd(), number) })?;
    }
    if console.as_raw_fd() < 3 {
        // It is one of the three itself: not to be closed.
        std::mem::forget(console);
    }
    Ok(())
}
