//! `xen_version`: what the guest is told about its hypervisor, from the frozen identity only.

use xen_abi::version::{
    FEATURE_GNTTAB_MAP_AVAIL_BITS, FEATURE_HIGHMEM_ASSIST, FEATURE_MMU_PT_UPDATE_PRESERVE_AD, op,
};
use xen_abi::{Errno, GuestVa, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::{Answer, Args, read};
use crate::cpu::Machine;
use crate::guest::Guest;
use crate::host::Host;
use crate::points::identity::Identity;

/// Features of this interface, one bit each (`XENFEAT_*`).  Linux panics without the first, and
/// its stable versions since 2022 without the last, although they never map a grant.
const FEATURES: u32 = 1 << FEATURE_MMU_PT_UPDATE_PRESERVE_AD
    | 1 << FEATURE_HIGHMEM_ASSIST
    | 1 << FEATURE_GNTTAB_MAP_AVAIL_BITS;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `xen_version(command, argument)`.
    pub(super) fn xen_version(&mut self, [command, arg, ..]: Args) -> Answer {
        let denied = Identity::DENIED.as_bytes();
        match command {
            op::VERSION => return Ok(self.identity.version.into()),
            op::EXTRAVERSION => self
                .m
                .write_guest(GuestVa(arg), &self.identity.extraversion)?,
            op::COMPILE_INFO => {
                let mut info = [0; 64 + 16 + 32 + 32];
                // Compiler, by, domain, date. An ordinary domain is told nothing under Xen either
                // (`xen_deny`), and so a move has nothing to keep constant.
                for field in [0, 64, 80, 112] {
                    info[field..field + denied.len()].copy_from_slice(denied);
                }
                self.m.write_guest(GuestVa(arg), &info)?;
            }
            op::CAPABILITIES => {
                self.write_string::<1024>(arg, Identity::CAPABILITIES.as_bytes())?;
            }
            op::CHANGESET => self.write_string::<64>(arg, denied)?,
            op::PLATFORM_PARAMETERS => {
                let start = xen_abi::mmu::HYPERVISOR_VIRT_START;
                self.m.write_guest(GuestVa(arg), start.as_bytes())?;
            }
            op::GET_FEATURES => {
                let index: u32 = read(&self.m, arg)?;
                // Kernels ask for one set after the other, and stop at the first error.
                if index != 0 {
                    return Err(Errno::EINVAL);
                }
                self.m
                    // Does not wrap: the four bytes before these were read from there.
                    .write_guest(GuestVa(arg.wrapping_add(4)), FEATURES.as_bytes())?;
            }
            // Xen refuses a pointer that it would not use.
            op::PAGESIZE if arg != 0 => return Err(Errno::EINVAL),
            op::PAGESIZE => return Ok(PAGE_SIZE as u64),
            op::GUEST_HANDLE => self.m.write_guest(GuestVa(arg), &self.identity.uuid)?,
            op::COMMANDLINE => self.write_string::<1024>(arg, denied)?,
            // As an ordinary domain is refused, not as a build without an id (ENODATA).
            op::BUILD_ID => return Err(Errno::EPERM),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    /// Writes a string of a fixed length, its tail zeroed (XSA-122).
    fn write_string<const N: usize>(&self, va: u64, text: &[u8]) -> Result<(), Errno> {
        // Of zeroes, and as long as the interface says: the rest of the shim's stack stays here.
        let mut field = [0; N];
        field[..text.len()].copy_from_slice(text);
        Ok(self.m.write_guest(GuestVa(va), &field)?)
    }
}
