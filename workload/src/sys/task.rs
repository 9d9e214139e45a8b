//! Processes and processors: fork, pin, real-time priority, anonymous memory.

use std::io;
use std::ptr::NonNull;

use super::check;

/// Pins the calling thread to one processor.
///
/// # Errors
/// As `sched_setaffinity(2)`: no such processor.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `cpu` is within the set, as just checked; `set` lives across the call.
    check(unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    })?;
    Ok(())
}

/// How many processors this process may run on.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Gives the calling thread the highest first-in-first-out real-time priority.
///
/// # Errors
/// As `sched_setscheduler(2)`: not root.
pub fn run_real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 99 };
    // SAFETY: the structure lives across the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })?;
    Ok(())
}

/// Which side of a fork one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the child's process id.
    Parent(libc::pid_t),
}

/// Forks a process that has only one thread.
///
/// # Errors
/// As `fork(2)`, or if there are several threads: the child of such a fork must not even allocate,
/// a promise that callers of a safe function need not keep.
pub fn fork() -> io::Result<Forked> {
    // A thread that was joined may still be on its last steps in the kernel.
    for _ in 0..1000 {
        if std::fs::read_dir("/proc/self/task")?.count() == 1 {
            return fork_cheaply();
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::other("fork in a process with several threads"))
}

/// [`fork`] without looking at the number of threads, where the look would be what is measured:
/// only for processes known to have one.
pub(crate) fn fork_cheaply() -> io::Result<Forked> {
    // SAFETY: with one thread no lock can be held by somebody who does not exist in the child.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Ends the process at once, without running anything on the way out.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(code) }
}

/// Waits for a child (or any, with -1); its process id and raw status.
///
/// # Errors
/// As `waitpid(2)`; interrupted waits are continued.
pub fn wait_for(pid: libc::pid_t) -> io::Result<(libc::pid_t, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: the status pointer is live.
        match check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }) {
            Ok(found) => return Ok((found, status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The exit code in a raw wait status, or minus the signal that ended the process.
#[must_use]
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        -libc::WTERMSIG(status)
    }
}

/// Sends a signal.
///
/// # Errors
/// As `kill(2)`.
pub fn kill(pid: libc::pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// One system call that does next to nothing, straight to the kernel.
#[inline]
#[must_use]
pub fn null_system_call() -> libc::c_long {
    // SAFETY: getppid takes no arguments and can not fail.
    unsafe { libc::syscall(libc::SYS_getppid) }
}

/// Anonymous private memory of its own mapping.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps `length` zero bytes; `huge` says whether the kernel may use huge pages.
    ///
    /// # Errors
    /// As `mmap(2)`.
    pub fn new(length: usize, huge: bool) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if !huge {
            // SAFETY: advice on the mapping just made; failure (no such feature) does not matter.
            unsafe { libc::madvise(start, length, libc::MADV_NOHUGEPAGE) };
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, length })
    }

    /// Changes the protection of the whole mapping to `PROT_*` bits.
    ///
    /// # Errors
    /// As `mprotect(2)`.
    ///
    /// # Safety
    /// Until access is given back, slices must not be used but in ways that expect SIGSEGV.
    pub unsafe fn protect(&self, bits: i32) -> io::Result<()> {
        // SAFETY: the range is this mapping, which lives; the rest is promised by the caller.
        check(unsafe { libc::mprotect(self.address().cast(), self.length, bits) })?;
        Ok(())
    }

    /// The first byte's address.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The memory.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours alone, zero-initialised by the kernel, and lives as long as
        // `self`, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nobody can hold a slice of it any more.
        unsafe { libc::munmap(self.address().cast(), self.length) };
    }
}

/// Maps `length` bytes with all their pages present, and unmaps them.
///
/// # Errors
/// As `mmap(2)`.
pub fn map_and_unmap(length: usize) -> io::Result<()> {
    // SAFETY: a fresh anonymous mapping aliases nothing, and is gone before anybody sees it.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        check(libc::munmap(start, length))?;
    }
    Ok(())
}

/// Becomes another program; returns only if that fails.
#[must_use]
pub fn exec(path: &std::ffi::CStr, arguments: &[&std::ffi::CStr]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> =
        arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: path and arguments are zero-terminated and live; the list ends with a null pointer.
    unsafe { libc::execv(path.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}
