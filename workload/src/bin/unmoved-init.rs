//! The guest's program: process 1 of a test guest's initramfs.
//!
//! Without arguments as process 1 it boots the guest; `--worker` carries out orders from standard
//! input (also as an ordinary process, for trying things out); `--helper` is for its own use.  As
//! `/sbin/poweroff` and `/sbin/reboot`, which the kernel runs when the host asks for that, it ends
//! the machine.

use std::path::Path;

use unmoved_workload::helper;
use unmoved_workload::init::{boot, helpers, worker::Worker};
use unmoved_workload::report::Reporter;
use unmoved_workload::sys::system::{Power, power};

/// How the program that was called by this name ends the machine.
fn power_program() -> Option<Power> {
    match Path::new(&std::env::args_os().next()?)
        .file_name()?
        .to_str()?
    {
        "poweroff" => Some(Power::Off),
        "reboot" => Some(Power::Restart),
        _ => None,
    }
}

fn main() {
    if let Some(how) = power_program() {
        eprintln!("unmoved-init: {}", power(how));
        std::process::exit(1);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(helper::MARK) => std::process::exit(helpers::main(&arguments[1..])),
        Some(boot::WORKER) => {
            let again = arguments.get(1).is_some_and(|word| word == boot::AGAIN);
            Worker::run(Reporter::new(std::io::stdout()), again)
        }
        // The kernel hands words of its command line that it does not know to process 1.
        _ if std::process::id() == 1 => {
            let error = boot::run();
            eprintln!("unmoved-init: {error}");
        }
        _ => {
            eprintln!("unmoved-init is process 1 of a test guest; `--worker` takes orders here");
            std::process::exit(2);
        }
    }
}
