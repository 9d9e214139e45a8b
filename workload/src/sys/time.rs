//! Reading clocks.

/// A kernel clock by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Since some start, slewed by the kernel, never back.
    Monotonic,
    /// As `Monotonic`, not slewed.
    MonotonicRaw,
    /// As `Monotonic`, counting time spent suspended.
    Boottime,
    /// The time of day.
    Realtime,
}

/// A clock's time in nanoseconds.
#[must_use]
pub fn now(clock: Clock) -> i64 {
    let number = match clock {
        Clock::Monotonic => libc::CLOCK_MONOTONIC,
        Clock::MonotonicRaw => libc::CLOCK_MONOTONIC_RAW,
        Clock::Boottime => libc::CLOCK_BOOTTIME,
        Clock::Realtime => libc::CLOCK_REALTIME,
    };
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec; these clocks exist on every kernel in use.
    unsafe { libc::clock_gettime(number, &raw mut time) };
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// The time-stamp counter as the processor (or whoever traps it) presents it.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is unprivileged; a hypervisor that traps it answers too.  LFENCE is SSE2,
    // which every x86-64 has.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Nanoseconds since `start`, never negative.
#[must_use]
pub fn since(clock: Clock, start: i64) -> u64 {
    u64::try_from(now(clock).saturating_sub(start)).unwrap_or(0)
}
