//! The storm's checks but for ptrace.  Each runs in a process that has one thread at its start.

#![expect(unsafe_code, reason = "memory is touched that must fault")]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::helper;
use crate::sys::signal;
use crate::sys::task::{self, Forked, Mapping, exit_code, exit_now, wait_for};

const PAGE: usize = 4096;

/// Runs `act` in a forked child; its exit code, or minus the signal that ended it.
pub(super) fn in_child(act: impl FnOnce() -> i32) -> Result<i32, String> {
    match task::fork().map_err(|error| error.to_string())? {
        Forked::Child => exit_now(act()),
        Forked::Parent(pid) => {
            let (_, status) = wait_for(pid).map_err(|error| error.to_string())?;
            Ok(exit_code(status))
        }
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, right: T) -> Result<(), String> {
    if found == right {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} instead of {right:?}"))
    }
}

/// Children of children of children, each with its own exit code.
///
/// # Errors
/// What was wrong.
pub fn fork_tree() -> Result<(), String> {
    for code in 1..=3 {
        let found = in_child(|| match in_child(|| code * 10) {
            Ok(inner) => inner + code,
            Err(_) => 99,
        })?;
        expect("exit code", found, code * 11)?;
    }
    Ok(())
}

/// A fresh program computes the right thing and its output arrives.
///
/// # Errors
/// What was wrong.
pub fn exec() -> Result<(), String> {
    let text = helper::output_with("add", &["20".into(), "22".into()])
        .map_err(|error| error.to_string())?;
    expect("output", text.trim(), "42")
}

/// What a child writes, the parent must not see, nor the other way round.
///
/// # Errors
/// What was wrong.
pub fn copy_on_write() -> Result<(), String> {
    const PAGES: usize = 32;
    let mut memory = Mapping::new(PAGES * PAGE, false).map_err(|error| error.to_string())?;
    let bytes = memory.bytes();
    for page in 0..PAGES {
        bytes[page * PAGE] = 1;
    }
    let code = in_child(|| {
        let mut wrong = 0;
        for page in 0..PAGES {
            wrong += i32::from(bytes[page * PAGE] != 1);
            bytes[page * PAGE] = 2;
            bytes[page * PAGE + 8] = 3;
        }
        let sum: usize = (0..PAGES).map(|page| usize::from(bytes[page * PAGE])).sum();
        i32::from(wrong != 0 || sum != 2 * PAGES)
    })?;
    expect("child", code, 0)?;
    let bytes = memory.bytes();
    let same = (0..PAGES).all(|page| bytes[page * PAGE] == 1 && bytes[page * PAGE + 8] == 0);
    expect("the parent's memory is its own", same, true)
}

/// Fresh mappings are zero, keep what is written, and their addresses can be used again.
///
/// # Errors
/// What was wrong.
pub fn map_and_remap() -> Result<(), String> {
    for round in 1..=8_usize {
        let length = round * 3 * PAGE;
        let mut memory = Mapping::new(length, round % 2 == 0).map_err(|error| error.to_string())?;
        let bytes = memory.bytes();
        if let Some(at) = bytes.iter().step_by(64).position(|&byte| byte != 0) {
            return Err(format!("a fresh mapping is not zero at {}", at * 64));
        }
        for (index, byte) in bytes.iter_mut().enumerate().step_by(61) {
            *byte = (index * round) as u8;
        }
        let kept = |(index, byte): (usize, &u8)| *byte == (index * round) as u8;
        expect("kept", bytes.iter().enumerate().step_by(61).all(kept), true)?;
    }
    Ok(())
}

/// A write to memory made read-only ends the writer; made writable again, it works.
///
/// # Errors
/// What was wrong.
pub fn protection() -> Result<(), String> {
    let mut memory = Mapping::new(4 * PAGE, false).map_err(|error| error.to_string())?;
    memory.bytes().fill(7);
    let fail = |error: std::io::Error| error.to_string();
    // SAFETY: until the protection is taken back, memory is only read, or written by children that
    // are meant to die of it.
    unsafe { memory.protect(libc::PROT_READ) }.map_err(fail)?;
    let start = memory.address();
    let code = in_child(|| {
        // SAFETY: the address is mapped; the fault this raises is what is being looked for.
        unsafe { start.wrapping_add(PAGE).write_volatile(1) };
        0
    })?;
    expect("write to read-only memory", code, -libc::SIGSEGV)?;
    // SAFETY: as above, and nothing is read while access is off.
    unsafe { memory.protect(libc::PROT_NONE) }.map_err(fail)?;
    let code = in_child(|| {
        // SAFETY: as above.
        i32::from(unsafe { start.wrapping_add(PAGE).read_volatile() })
    })?;
    expect("read of forbidden memory", code, -libc::SIGSEGV)?;
    // SAFETY: gives all access back.
    unsafe { memory.protect(libc::PROT_READ | libc::PROT_WRITE) }.map_err(fail)?;
    memory.bytes()[PAGE] = 8;
    let sum: usize = memory.bytes().iter().map(|&byte| usize::from(byte)).sum();
    expect("contents", sum, 4 * PAGE * 7 + 1)
}

/// Every signal sent to oneself or by a child is delivered.
///
/// # Errors
/// What was wrong.
pub fn signals() -> Result<(), String> {
    signal::count_signal(libc::SIGUSR1).map_err(|error| error.to_string())?;
    let before = signal::counted();
    for _ in 0..100 {
        signal::raise(libc::SIGUSR1);
    }
    expect("own signals", signal::counted() - before, 100)?;
    let parent = libc::pid_t::try_from(std::process::id()).unwrap_or_default();
    let code = in_child(|| i32::from(task::kill(parent, libc::SIGUSR1).is_err()))?;
    expect("child", code, 0)?;
    let limit = Instant::now() + Duration::from_secs(10);
    while signal::counted() - before < 101 && Instant::now() < limit {
        std::thread::yield_now();
    }
    expect("signals", signal::counted() - before, 101)
}

/// Bytes go back and forth between two processes and stay what they are.
///
/// # Errors
/// What was wrong.
pub fn pipe() -> Result<(), String> {
    let fail = |error: std::io::Error| error.to_string();
    let (mut here_in, mut there_out) = std::io::pipe().map_err(fail)?;
    let (mut there_in, mut here_out) = std::io::pipe().map_err(fail)?;
    match task::fork().map_err(fail)? {
        Forked::Child => {
            drop((here_in, here_out));
            let mut word = [0; 8];
            while there_in.read_exact(&mut word).is_ok() {
                let answer = u64::from_le_bytes(word).wrapping_mul(3).to_le_bytes();
                if there_out.write_all(&answer).is_err() {
                    break;
                }
            }
            exit_now(0)
        }
        Forked::Parent(pid) => {
            drop((there_in, there_out));
            let mut result = Ok(());
            for number in 0..200_u64 {
                let mut word = number.to_le_bytes();
                let done = here_out
                    .write_all(&word)
                    .and_then(|()| here_in.read_exact(&mut word));
                result = result.and(done.map_err(fail));
                result =
                    result.and_then(|()| expect("answer", u64::from_le_bytes(word), number * 3));
            }
            drop(here_out);
            let (_, status) = wait_for(pid).map_err(fail)?;
            result.and_then(|()| expect("child", exit_code(status), 0))
        }
    }
}

/// Threads share memory and locks.
///
/// # Errors
/// What was wrong.
pub fn threads() -> Result<(), String> {
    let total = Arc::new(Mutex::new(0_u64));
    let threads: Vec<_> = (0..4_u64)
        .map(|index| {
            let total = total.clone();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    *total.lock().unwrap_or_else(PoisonError::into_inner) += index;
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread died".to_owned())?;
    }
    let found = *total.lock().unwrap_or_else(PoisonError::into_inner);
    expect("sum", found, 1200)
}

/// Floating-point registers survive other processes' use of them.
///
/// # Errors
/// What was wrong.
pub fn floating_point() -> Result<(), String> {
    fn series(seed: f64) -> u64 {
        let mut values = [seed, seed / 3.0, seed * 7.0, seed + 0.1];
        for round in 0..60 {
            for value in &mut values {
                *value = (*value * 1.000_1).sqrt() + 0.5;
            }
            if round % 10 == 0 {
                std::thread::yield_now();
            }
        }
        values.iter().fold(0, |sum, value| sum ^ value.to_bits())
    }
    let right = series(2.0);
    let other = task::fork().map_err(|error| error.to_string())?;
    match other {
        Forked::Child => exit_now(i32::from((0..20).any(|_| series(2.0) != right))),
        Forked::Parent(pid) => {
            let first = series(5.0);
            let same = (0..20).all(|_| series(5.0) == first);
            let (_, status) = wait_for(pid).map_err(|error| error.to_string())?;
            expect("child", exit_code(status), 0)?;
            expect("parent", same, true)
        }
    }
}

/// A sleep is never shorter than asked for.
///
/// # Errors
/// What was wrong.
pub fn timer() -> Result<(), String> {
    let start = Instant::now();
    let wish = Duration::from_millis(2);
    std::thread::sleep(wish);
    if start.elapsed() < wish {
        return Err(format!("slept {:?} instead of {wish:?}", start.elapsed()));
    }
    Ok(())
}
