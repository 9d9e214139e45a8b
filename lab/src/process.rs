//! Starts QEMU so that it cannot outlive the lab, however the lab ends.
//!
//! The kernel kills the child when the *thread* that started it ends (`PR_SET_PDEATHSIG`), so children
//! are started by one thread that lives as long as the program.  Sockets to the child are handed over
//! as open descriptors: there is no port and no path that another lab could collide with.

#![expect(unsafe_code, reason = "a child prepares itself between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

struct Order {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

/// Start `command` with these descriptors open at their present numbers; they are closed here after.
///
/// # Errors
/// If the program cannot be run.
pub fn spawn(mut command: Command, descriptors: Vec<OwnedFd>) -> io::Result<Child> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || prepare(&numbers, parent));
    }
    let (reply, answer) = mpsc::channel();
    let order = Order { command, reply };
    starter()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(order)
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    let child = answer
        .recv()
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    drop(descriptors);
    child
}

/// In the child: keep the descriptors, die with the parent.
fn prepare(numbers: &[RawFd], parent: u32) -> io::Result<()> {
    for number in numbers {
        // SAFETY: fcntl with F_SETFD touches no memory; the descriptor is open.
        if unsafe { libc::fcntl(*number, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: this prctl takes a signal number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid has no preconditions.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        // The parent was faster.
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

fn starter() -> &'static Mutex<mpsc::Sender<Order>> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for mut order in inbox {
                let child = order.command.spawn();
                // Nobody waits for it any more: then it must not run either.
                if let Err(mpsc::SendError(Ok(mut orphan))) = order.reply.send(child) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        });
        Mutex::new(orders)
    })
}

#[cfg(test)]
mod tests {
    use super::spawn;
    use std::process::Command;
    use std::thread;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let mut child = thread::spawn(move || spawn(sleep, Vec::new()).unwrap())
            .join()
            .unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
