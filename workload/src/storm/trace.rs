//! Single-stepping a child through a known piece of code, as a debugger does.

#![expect(unsafe_code, reason = "ptrace takes addresses")]

use std::io;

use crate::sys::check_long;
use crate::sys::task::{self, Forked, exit_code, exit_now, wait_for};

/// Turns of the loop that is stepped through.
const TURNS: u32 = 12;
/// Instructions between the two breakpoints: two to set up, three a turn.
const STEPS: u32 = 2 + 3 * TURNS;

/// A request that neither reads nor writes our memory.
fn trace(request: libc::c_uint, pid: libc::pid_t) -> Result<(), String> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: only requests whose address and data are not pointers come through here.
    check_long(unsafe { libc::ptrace(request, pid, none, none) })
        .map(drop)
        .map_err(|error| format!("ptrace {request}: {error}"))
}

fn registers(pid: libc::pid_t) -> Result<libc::user_regs_struct, String> {
    // SAFETY: an all-zero register set is a valid value to be overwritten.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: GETREGS writes one user_regs_struct, which lives.
    check_long(unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, none, &raw mut registers) })
        .map_err(|error| format!("ptrace registers: {error}"))?;
    Ok(registers)
}

/// Waits until the child stops; the signal, or an error if it ended.
fn stopped(pid: libc::pid_t) -> Result<i32, String> {
    let (_, status) = wait_for(pid).map_err(|error: io::Error| error.to_string())?;
    if libc::WIFSTOPPED(status) {
        Ok(libc::WSTOPSIG(status))
    } else {
        Err(format!("the child ended with {}", exit_code(status)))
    }
}

fn stopped_by_trap(pid: libc::pid_t, when: &str) -> Result<(), String> {
    match stopped(pid)? {
        libc::SIGTRAP => Ok(()),
        other => Err(format!("signal {other} instead of a trap {when}")),
    }
}

/// The child: asks to be traced and runs the known code.
fn child() -> i32 {
    if trace(libc::PTRACE_TRACEME, 0).is_err() {
        return 1;
    }
    let sum: u32;
    // SAFETY: touches the two named registers only; the breakpoints stop for the tracer, which
    // goes on after each.
    unsafe {
        core::arch::asm!(
            "int3",
            "mov ecx, {turns}",
            "xor eax, eax",
            "2:",
            "add eax, 3",
            "dec ecx",
            "jnz 2b",
            "int3",
            turns = const TURNS,
            out("eax") sum,
            out("ecx") _,
            options(nostack),
        );
    }
    i32::from(sum != 3 * TURNS)
}

fn drive(pid: libc::pid_t) -> Result<i32, String> {
    stopped_by_trap(pid, "at the first breakpoint")?;
    let start = registers(pid)?.rip;
    for step in 1..=STEPS {
        let before = registers(pid)?.rip;
        trace(libc::PTRACE_SINGLESTEP, pid)?;
        stopped_by_trap(pid, "after a step")?;
        let now = registers(pid)?;
        if now.rip == before {
            return Err(format!("step {step} did not move"));
        }
        // After the loop's n-th `add` the sum is 3 n.
        if step > 2 && (step - 2) % 3 == 1 {
            let right = u64::from((step - 2) / 3 + 1) * 3;
            if now.rax != right {
                return Err(format!("sum {} instead of {right} at step {step}", now.rax));
            }
        }
    }
    let end = registers(pid)?;
    if end.rip <= start || end.rcx != 0 {
        return Err(format!(
            "the loop ended at {:#x} with {} turns left",
            end.rip, end.rcx
        ));
    }
    trace(libc::PTRACE_CONT, pid)?;
    stopped_by_trap(pid, "at the second breakpoint")?;
    if registers(pid)?.rip != end.rip + 1 {
        return Err("the second breakpoint is elsewhere".into());
    }
    trace(libc::PTRACE_CONT, pid)?;
    let (_, status) = wait_for(pid).map_err(|error| error.to_string())?;
    Ok(exit_code(status))
}

/// Steps a child through a loop: exactly as many steps as instructions, right registers at each.
///
/// # Errors
/// What was wrong.
pub fn single_step() -> Result<(), String> {
    match task::fork().map_err(|error| error.to_string())? {
        Forked::Child => exit_now(child()),
        Forked::Parent(pid) => match drive(pid) {
            Ok(0) => Ok(()),
            Ok(code) => Err(format!("the child ended with {code}")),
            Err(reason) => {
                let _ = task::kill(pid, libc::SIGKILL);
                let _ = wait_for(pid);
                Err(reason)
            }
        },
    }
}
