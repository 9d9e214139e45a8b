//! Runs a program and takes its time and its peak memory.

#![expect(unsafe_code, reason = "std has no wait4")]

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// What a run took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// From start to end.
    pub(super) seconds: f64,
    /// Of the processor, in the program and for it in the kernel.
    pub(super) cpu_seconds: f64,
    /// Most memory at a time (resident set).
    pub(super) peak_kib: u64,
}

/// Runs a command to its end; what it writes goes through a pipe to somebody who drops it.
pub(super) fn measure(mut command: Command) -> Result<Measured> {
    let words = tempfile::tempfile()?;
    let mut drain = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run cat")?;
    command
        .stdin(Stdio::null())
        .stdout(drain.stdin.take().context("cat has no input")?)
        .stderr(words.try_clone()?);
    let begun = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let result = wait(&child, begun).with_context(|| complaint(words));
    // Our end of the pipe is in the command; cat ends when all ends are closed.
    drop(command);
    drain.wait()?;
    result
}

/// The last line that the program said.
fn complaint(mut words: File) -> String {
    use std::io::{Read, Seek};
    let mut text = String::new();
    let read = words
        .rewind()
        .and_then(|()| words.read_to_string(&mut text));
    let line = text.trim_end().lines().last().unwrap_or_default();
    match read {
        Ok(_) if !line.is_empty() => line.to_owned(),
        _ => "a tool has failed".to_owned(),
    }
}

/// Waits for the program and asks the kernel what it took.
fn wait(child: &Child, begun: Instant) -> Result<Measured> {
    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value of this plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to valid, writable values; the child has not been waited for, since
        // `child` is ours and `wait` was never called on it.
        let done = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if done == pid {
            break;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            bail!("cannot wait for a tool: {error}");
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the tool did not end well"
    );
    Ok(Measured {
        seconds,
        cpu_seconds: (time(usage.ru_utime) + time(usage.ru_stime)).as_secs_f64(),
        peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or_default(),
    })
}

fn time(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let micros = u64::try_from(time.tv_usec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

impl Measured {
    /// The run in the middle by its time, with the largest memory of all.
    pub(super) fn median(mut runs: Vec<Self>) -> Self {
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let peak_kib = runs.iter().map(|run| run.peak_kib).max().unwrap_or(0);
        Self {
            peak_kib,
            ..runs[runs.len() / 2]
        }
    }

    pub(super) fn describe(&self, gib: u64) -> String {
        format!(
            "{:6.2} s {:7.2} GiB/s {:3} MiB",
            self.seconds,
            self.rate(gib),
            self.peak_kib.div_ceil(1024)
        )
    }

    pub(super) fn figures(&self, gib: u64) -> Value {
        json!({
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "gib_s": self.rate(gib),
            "peak_kib": self.peak_kib,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a few GiB")]
    fn rate(&self, gib: u64) -> f64 {
        gib as f64 / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Measured, measure};

    #[test]
    fn the_median_has_the_largest_memory() {
        let run = |seconds, peak_kib| Measured {
            seconds,
            cpu_seconds: seconds,
            peak_kib,
        };
        let median = Measured::median(vec![run(3.0, 1), run(1.0, 9), run(2.0, 2)]);
        assert_eq!(median, run(2.0, 9));
    }

    #[test]
    fn a_failure_is_what_the_tool_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo so it is >&2; exit 1"]);
        let error = measure(command).unwrap_err();
        assert!(format!("{error:#}").starts_with("so it is"), "{error:#}");
    }
}
