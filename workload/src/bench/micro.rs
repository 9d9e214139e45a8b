//! Kernel operations, in a process of its own with a single thread.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::time::Instant;

use serde_json::Value;

use super::Results;
use crate::helper;
use crate::sys::signal;
use crate::sys::task::{self, Forked, Mapping, exit_now, wait_for};

const PAGE: usize = 4096;

/// Times `count` runs of `act`, `reps` times; nanoseconds a run, for each repetition.
fn time(reps: u64, count: u32, mut act: impl FnMut() -> io::Result<()>) -> io::Result<Vec<f64>> {
    // Once without the clock, so that code and tables are where they will be.
    act()?;
    (0..reps)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..count {
                act()?;
            }
            Ok(start.elapsed().as_nanos() as f64 / f64::from(count))
        })
        .collect()
}

/// Measures everything; the body of the helper process.
///
/// # Errors
/// What failed.
pub fn measure(reps: u64) -> io::Result<Value> {
    let mut results = Results::default();
    let calls = time(reps, 20_000, || {
        std::hint::black_box(task::null_system_call());
        Ok(())
    })?;
    results.add("null_syscall_ns", &calls);
    results.add("ctx_switch_ns", &context_switch(reps)?);
    results.add("fork_exec_ns", &fork_exec(reps)?);
    results.add("page_fault_ns", &page_fault(reps)?);
    let maps = time(reps, 200, || task::map_and_unmap(16 * PAGE))?;
    results.add("mmap_ns", &maps);
    signal::count_signal(libc::SIGUSR1)?;
    let signals = time(reps, 2000, || {
        signal::raise(libc::SIGUSR1);
        Ok(())
    })?;
    results.add("signal_ns", &signals);
    Ok(results.into_json())
}

/// A byte to and fro between two processes on one processor: two switches.
fn context_switch(reps: u64) -> io::Result<Vec<f64>> {
    let (mut here_in, mut there_out) = io::pipe()?;
    let (mut there_in, mut here_out) = io::pipe()?;
    task::pin_to(0)?;
    match task::fork_cheaply()? {
        Forked::Child => {
            drop((here_in, here_out));
            let mut byte = [0];
            while there_in.read_exact(&mut byte).is_ok() && there_out.write_all(&byte).is_ok() {}
            exit_now(0)
        }
        Forked::Parent(pid) => {
            drop((there_in, there_out));
            let mut byte = [0];
            let found = time(reps, 500, || {
                here_out.write_all(&byte)?;
                here_in.read_exact(&mut byte)
            });
            drop(here_out);
            wait_for(pid)?;
            Ok(found?
                .into_iter()
                .map(|round_trip| round_trip / 2.0)
                .collect())
        }
    }
}

/// A fork, an exec of this program doing nothing, and its end.
fn fork_exec(reps: u64) -> io::Result<Vec<f64>> {
    let path = CString::new(helper::PROGRAM)?;
    let arguments = ["unmoved-init", helper::MARK, "nothing"].map(CString::new);
    let [first, second, third] = arguments;
    let (first, second, third) = (first?, second?, third?);
    time(reps, 10, || match task::fork_cheaply()? {
        Forked::Child => {
            let _ = task::exec(&path, &[&first, &second, &third]);
            exit_now(127)
        }
        Forked::Parent(pid) => match wait_for(pid)? {
            (_, 0) => Ok(()),
            (_, status) => Err(io::Error::other(format!("exec ended with {status:#x}"))),
        },
    })
}

/// The first touch of a page, without what mapping and unmapping cost.
fn page_fault(reps: u64) -> io::Result<Vec<f64>> {
    const PAGES: usize = 512;
    (0..reps)
        .map(|_| {
            let mut memory = Mapping::new(PAGES * PAGE, false)?;
            let bytes = memory.bytes();
            let start = Instant::now();
            for page in 0..PAGES {
                bytes[page * PAGE] = 1;
            }
            let took = start.elapsed();
            std::hint::black_box(&*bytes);
            Ok(took.as_nanos() as f64 / PAGES as f64)
        })
        .collect()
}
