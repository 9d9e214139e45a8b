//! Ways for a guest to refuse its co-operation in a suspend.
//!
//! *Held*: processes that wait in state D for a page that never comes
//! ([`crate::sys::userfault`]).  Linux's freezer sends every task a fake signal and counts a task
//! frozen once it sleeps freezably or passes by user mode on its way to a signal; these do neither,
//! so after 20 s it reports "Freezing user space processes failed", Xen's suspend of the guest
//! fails, and the guest lives on.  Needs `CONFIG_USERFAULTFD`, which Debian's kernels build in.
//!
//! *Starved*: a real-time process spins on every processor, so the kernel thread that would answer
//! the toolstack never runs.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::helper;
use crate::sys::task;

/// Longest time until such a process waits: it is loaded and runs first, on a host that may have other work.
const GET_STUCK: Duration = Duration::from_secs(180);

/// Processes that can not be frozen; they end with it.
#[derive(Default)]
pub struct Held {
    children: Vec<Child>,
}

impl Held {
    /// Adds `count` such processes; returns once each is seen to be in state D.
    ///
    /// # Errors
    /// If one can not be started or does not get stuck.
    pub fn add(&mut self, count: u64) -> std::io::Result<()> {
        for _ in 0..count {
            let mut child = helper::command("wait-for-ever", &[]).spawn()?;
            let limit = Instant::now() + GET_STUCK;
            while state(child.id()) != Some('D') {
                if child.try_wait()?.is_some() || Instant::now() > limit {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(std::io::Error::other(
                        "no process got stuck (does the kernel have userfaultfd?)",
                    ));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            self.children.push(child);
        }
        Ok(())
    }

    /// The state letter of each process; all `D` while the guest is unfriendly.
    #[must_use]
    pub fn states(&self) -> Vec<String> {
        self.children
            .iter()
            .map(|child| state(child.id()).map_or_else(|| "gone".into(), String::from))
            .collect()
    }

    /// Ends them all: the guest is friendly again.
    pub fn release(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// A process's state letter.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold anything.
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

/// Spins on every processor at the highest real-time priority for `seconds`; nothing else in the
/// guest's user space or its ordinary kernel threads runs meanwhile.
///
/// # Errors
/// If a helper can not be started.
pub fn starve(seconds: u64) -> std::io::Result<()> {
    // Without this the kernel keeps 5 % for others.
    let _ = std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1");
    let mut spinners = Vec::new();
    for cpu in 0..task::processors() {
        let arguments = [cpu.to_string(), seconds.to_string()];
        spinners.push(helper::command("spin", &arguments).spawn()?);
    }
    for mut spinner in spinners {
        let status = spinner.wait()?;
        if !status.success() {
            return Err(std::io::Error::other(format!(
                "a spinner ended with {status}"
            )));
        }
    }
    let _ = std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "950000");
    Ok(())
}

/// The body of a spinner.
///
/// # Errors
/// If it can not be pinned or is not allowed real-time priority.
pub fn spin(cpu: usize, seconds: u64) -> std::io::Result<()> {
    task::pin_to(cpu)?;
    task::run_real_time()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::state;

    #[test]
    fn the_state_of_a_process_is_read() {
        assert_eq!(
            state(std::process::id()).map(|state| "RSD".contains(state)),
            Some(true)
        );
        assert_eq!(state(u32::MAX), None);
    }
}
