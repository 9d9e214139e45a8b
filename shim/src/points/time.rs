//! The guest's clocks: its own system time, wall clock and timers.
//!
//! The guest's system time is the host's plus a difference that is chosen anew whenever the host
//! changes, while no vCPU runs; so it is continuous although every host counts from its own boot.

use xen_abi::Mfn;
use xen_abi::shared_info::{WC_NSEC, WC_SEC, WC_SEC_HI, WC_VERSION, time_info};

use crate::cpu::{InfoPage, Vcpu};
use crate::mem::Frames;

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// A consistent copy of the host's `vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTime {
    /// Even number that changes with every update.
    pub version: u32,
    /// TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds since the host started.
    pub system_time: u64,
    /// Scale, a 32-bit fraction.
    pub tsc_to_system_mul: u32,
    /// Shift that comes before it.
    pub tsc_shift: i8,
    /// Flags.
    pub flags: u8,
}

impl HostTime {
    /// Returns the host's system time at `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        // All of these are the host's numbers. Wrong ones give a wrong time, and must not give a
        // panic.
        let delta = tsc.wrapping_sub(self.tsc_timestamp);
        let shift = u32::from(self.tsc_shift.unsigned_abs());
        let shifted = if self.tsc_shift < 0 {
            delta.checked_shr(shift).unwrap_or(0)
        } else {
            delta.checked_shl(shift).unwrap_or(0)
        };
        let scaled = (u128::from(shifted) * u128::from(self.tsc_to_system_mul)) >> 32;
        self.system_time.wrapping_add(scaled as u64)
    }
}

/// Returns the nanoseconds that a host's `wc_sec` (both halves) and `wc_nsec` mean: whatever the
/// host wrote there, as many as fit.
pub fn wall_ns(seconds: u64, nanos: u32) -> u64 {
    seconds.saturating_mul(SECOND).saturating_add(nanos.into())
}

/// The guest's time, as a difference from the host's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    /// Guest system time minus host system time, nanoseconds, modulo 2^64.
    pub delta: u64,
    /// Flags to show besides the host's, [`time_info::FLAG_GUEST_STOPPED`] or none.
    pub extra_flags: u8,
}

impl Time {
    /// Translates a host time.
    pub fn to_guest(&self, host_ns: u64) -> u64 {
        host_ns.wrapping_add(self.delta)
    }

    /// Translates a guest deadline; one before the host's time 0 is due at once, one that the
    /// host's signed times can not express never is.
    pub fn to_host(&self, guest_ns: u64) -> u64 {
        let host = i128::from(guest_ns) - i128::from(self.delta as i64);
        host.clamp(0, i64::MAX.into()) as u64
    }

    /// Chooses the difference so that the guest's time at `host_ns` is `guest_ns`.
    pub fn rebase(&mut self, host_ns: u64, guest_ns: u64) {
        self.delta = guest_ns.wrapping_sub(host_ns);
    }

    /// Publishes the host's time info, translated, in a vCPU's info page.
    pub fn publish(&self, frames: &dyn Frames, info: InfoPage, host: &HostTime) {
        let base = info.offset + xen_abi::shared_info::vcpu_info::TIME;
        let at = |offset| base + offset;
        let frame = info.frame;
        // Odd while the rest changes, so that a reader tries again (Xen:
        // `update_vcpu_system_time`). The guest can write the version as well: wherever it has left
        // it, it goes odd and then even.
        let version = frames.load32(frame, at(time_info::VERSION)) | 1;
        frames.store32(frame, at(time_info::VERSION), version);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // The TSC is the host's own: only system time is translated.
        frames.store64(frame, at(time_info::TSC_TIMESTAMP), host.tsc_timestamp);
        frames.store64(
            frame,
            at(time_info::SYSTEM_TIME),
            self.to_guest(host.system_time),
        );
        frames.store32(
            frame,
            at(time_info::TSC_TO_SYSTEM_MUL),
            host.tsc_to_system_mul,
        );
        frames.store8(frame, at(time_info::TSC_SHIFT), host.tsc_shift as u8);
        // That it was stopped stays there until the guest has seen it and clears it.
        let unseen = frames.load8(frame, at(time_info::FLAGS)) & time_info::FLAG_GUEST_STOPPED;
        let flags = host.flags | self.extra_flags | unseen;
        frames.store8(frame, at(time_info::FLAGS), flags);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        frames.store32(frame, at(time_info::VERSION), version.wrapping_add(1));
    }

    /// Publishes the wall clock; `host_wall_ns` is the wall time, in nanoseconds since 1970, at
    /// the host's system time 0.
    pub fn publish_wall_clock(&self, frames: &dyn Frames, shared_info: Mfn, host_wall_ns: u64) {
        // A guest adds its own system time to this, which is ahead of the host's by `delta`.
        let wall = host_wall_ns.wrapping_sub(self.delta);
        let (seconds, nanos) = (wall / SECOND, (wall % SECOND) as u32);
        let version = frames.load32(shared_info, WC_VERSION) | 1;
        frames.store32(shared_info, WC_VERSION, version);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        frames.store32(shared_info, WC_SEC, seconds as u32);
        frames.store32(shared_info, WC_NSEC, nanos);
        frames.store32(shared_info, WC_SEC_HI, (seconds >> 32) as u32);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        frames.store32(shared_info, WC_VERSION, version.wrapping_add(1));
    }
}

/// Takes the deadlines of a vCPU that have passed at guest time `now`; `true` if the guest's
/// timer interrupt is due.  A poll's timeout only ends the poll.
pub fn expire(vcpu: &mut Vcpu, now: u64) -> bool {
    let mut due = false;
    if vcpu.timer.singleshot.is_some_and(|at| at <= now) {
        vcpu.timer.singleshot = None;
        due = true;
    }
    if let Some((next, period)) = vcpu.timer.periodic
        && next <= now
    {
        // However many periods were missed, there is one tick. `now` is whatever the host says, so
        // the sums saturate.
        let missed = (now - next) / period;
        let behind = missed.saturating_add(1).saturating_mul(period);
        vcpu.timer.periodic = Some((next.saturating_add(behind), period));
        due = true;
    }
    if vcpu.timer.poll.is_some_and(|at| at <= now) {
        vcpu.timer.poll = None;
        vcpu.polling.clear();
        vcpu.is_blocked = false;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::{HostTime, SECOND, Time, expire, wall_ns};
    use crate::cpu::{InfoPage, Vcpu};
    use xen_abi::Mfn;

    fn vcpu() -> Vcpu {
        Vcpu::new(
            0,
            InfoPage {
                frame: Mfn(0),
                offset: 0,
                is_registered: false,
            },
        )
    }

    #[test]
    fn time_is_continuous_across_hosts() {
        let mut time = Time::default();
        time.rebase(5_000, 5_000);
        assert_eq!(time.to_guest(6_000), 6_000);
        // The new host has been up for a shorter time than the guest.
        time.rebase(10, 6_000);
        assert_eq!(time.to_guest(15), 6_005);
        assert_eq!(time.to_host(6_005), 15);
        assert_eq!(
            time.to_host(3),
            0,
            "a deadline of before the host's start is due"
        );
    }

    #[test]
    fn host_time_scales() {
        let host = HostTime {
            tsc_timestamp: 1_000,
            system_time: 50,
            tsc_to_system_mul: 1 << 31,
            tsc_shift: 1,
            ..HostTime::default()
        };
        assert_eq!(host.at(1_300), 350);
        let slow = HostTime {
            tsc_shift: -1,
            ..host
        };
        assert_eq!(slow.at(1_400), 150);
    }

    #[test]
    fn no_value_of_the_host_is_too_large() {
        assert_eq!(wall_ns(5, 7), 5 * SECOND + 7);
        assert_eq!(wall_ns(u64::MAX, u32::MAX), u64::MAX);
        assert_eq!(wall_ns(u64::MAX / SECOND, u32::MAX), u64::MAX);
        let edges = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for (system_time, tsc_timestamp) in edges.iter().flat_map(|&a| edges.map(|b| (a, b))) {
            for tsc_shift in [i8::MIN, -64, -1, 0, 1, 63, 64, i8::MAX] {
                for tsc_to_system_mul in [0, 1, u32::MAX] {
                    let host = HostTime {
                        version: u32::MAX - 1,
                        tsc_timestamp,
                        system_time,
                        tsc_to_system_mul,
                        tsc_shift,
                        flags: !0,
                    };
                    for at in edges.map(|tsc| host.at(tsc)) {
                        let mut time = Time::default();
                        time.rebase(at, system_time);
                        assert_eq!(time.to_guest(at), system_time);
                        let mut vcpu = vcpu();
                        vcpu.timer.periodic = Some((1, u64::MAX >> 2));
                        expire(&mut vcpu, time.to_guest(at));
                        time.to_host(at);
                    }
                }
            }
        }
    }

    #[test]
    fn missed_ticks_fire_once() {
        let mut vcpu = vcpu();
        vcpu.timer.periodic = Some((100, 10));
        assert!(expire(&mut vcpu, 155));
        assert_eq!(vcpu.timer.periodic, Some((160, 10)));
        assert!(!expire(&mut vcpu, 159));
    }

    #[test]
    fn a_poll_ends_without_a_tick() {
        let mut vcpu = vcpu();
        vcpu.is_blocked = true;
        vcpu.timer.poll = Some(7);
        assert!(!expire(&mut vcpu, 7));
        assert!(!vcpu.is_blocked);
    }
}
