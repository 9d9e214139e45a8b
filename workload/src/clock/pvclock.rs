//! The hypervisor's clock page, where the kernel maps it for its vDSO.
//!
//! Nothing tells user space where that page is, so each page beside the vDSO is looked at: one that
//! has the layout, and whose time runs as CLOCK_MONOTONIC does, is it.  Pages are read through a
//! pipe: the kernel copies, and answers EFAULT for a page that is not (or no longer) there where a
//! plain load would be SIGBUS.  The vDSO maps it only if the hypervisor calls the TSC stable.

#![expect(
    unsafe_code,
    reason = "the clock page is another mapping of the kernel"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use crate::sys::check;
use crate::sys::time::{Clock, now, tsc};

/// Size of `struct pvclock_vcpu_time_info` (`xen/include/public/xen.h`, `vcpu_time_info`).
const LENGTH: usize = 32;
const PAGE: usize = 4096;

/// A clock page, found.
pub struct PvClock {
    address: usize,
    input: File,
    output: File,
}

/// The page's contents, as far as needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimeInfo {
    version: u32,
    tsc_timestamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
}

impl TimeInfo {
    fn parse(bytes: &[u8; LENGTH]) -> Self {
        let long = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        let (first, scale) = (long(0).to_le_bytes(), long(24).to_le_bytes());
        Self {
            version: u32::from_le_bytes([first[0], first[1], first[2], first[3]]),
            tsc_timestamp: long(8),
            system_time: long(16),
            multiplier: u32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]),
            shift: scale[4].cast_signed(),
        }
    }

    fn is_plausible(&self) -> bool {
        self.version != 0
            && self.version.is_multiple_of(2)
            && self.multiplier >= 1 << 24
            && (-32..=32).contains(&self.shift)
            && self.system_time != 0
    }

    /// System time at a TSC value, in nanoseconds.
    fn at(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc_timestamp);
        let distance = u32::from(self.shift.unsigned_abs());
        let ticks = if self.shift < 0 {
            ticks.checked_shr(distance).unwrap_or(0)
        } else {
            ticks.checked_shl(distance).unwrap_or(0)
        };
        let nanos = (u128::from(ticks) * u128::from(self.multiplier)) >> 32;
        self.system_time
            .wrapping_add(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl PvClock {
    /// Looks for the page; `None` if there is none.
    ///
    /// # Errors
    /// If the process's own mappings can not be read.
    pub fn find() -> io::Result<Option<Self>> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        for line in maps.lines().filter(|line| line.contains("[vvar")) {
            let ends = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            let Some((first, last)) = ends else { continue };
            let parse = |text| usize::from_str_radix(text, 16).map_err(io::Error::other);
            for address in (parse(first)?..parse(last)?).step_by(PAGE) {
                let mut candidate = Self::at(address)?;
                if candidate.runs() {
                    return Ok(Some(candidate));
                }
            }
        }
        Ok(None)
    }

    fn at(address: usize) -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: the array has room for the two descriptors.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: both descriptors are new and nobody else's.
        let (output, input) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
        Ok(Self {
            address,
            input,
            output,
        })
    }

    fn copy(&mut self) -> Option<TimeInfo> {
        // SAFETY: the kernel, not we, reads at the address, and answers EFAULT if it can not.
        let moved = unsafe {
            libc::write(
                self.input.as_raw_fd(),
                self.address as *const libc::c_void,
                LENGTH,
            )
        };
        if usize::try_from(moved) != Ok(LENGTH) {
            return None;
        }
        let mut bytes = [0; LENGTH];
        self.output.read_exact(&mut bytes).ok()?;
        Some(TimeInfo::parse(&bytes)).filter(TimeInfo::is_plausible)
    }

    /// The hypervisor's system time in nanoseconds; `None` if the page is not there or being
    /// updated.
    pub fn read(&mut self) -> Option<u64> {
        let before = self.copy()?;
        let time = before.at(tsc());
        (self.copy()? == before).then_some(time)
    }

    /// Whether it advances as the kernel's clock does, within 10 %.
    fn runs(&mut self) -> bool {
        let (Some(first), start) = (self.read(), now(Clock::MonotonicRaw)) else {
            return false;
        };
        std::thread::sleep(Duration::from_millis(20));
        let (Some(second), end) = (self.read(), now(Clock::MonotonicRaw)) else {
            return false;
        };
        let kernel = end.saturating_sub(start).unsigned_abs();
        let its = second.wrapping_sub(first);
        its.abs_diff(kernel) < kernel / 10
    }
}

#[cfg(test)]
mod tests {
    use super::{LENGTH, PvClock, TimeInfo};

    #[test]
    fn the_abi_formula_scales_ticks() {
        let info = TimeInfo {
            version: 2,
            tsc_timestamp: 1000,
            system_time: 5_000_000,
            multiplier: 1 << 31,
            shift: 1,
        };
        assert_eq!(info.at(3000), 5_002_000);
        assert_eq!(TimeInfo { shift: -1, ..info }.at(3000), 5_000_500);
        assert!(info.is_plausible());
        assert!(!TimeInfo { version: 3, ..info }.is_plausible());
        assert!(!TimeInfo::parse(&[0; LENGTH]).is_plausible());
    }

    #[test]
    fn looking_for_the_page_never_faults() {
        // Whether there is one depends on the machine; a page that is not there must be survived.
        assert!(PvClock::find().is_ok());
        assert!(PvClock::at(0x1000).expect("pipe").read().is_none());
    }
}
