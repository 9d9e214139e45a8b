//! Hypercalls to the Xen underneath, and the few that need nothing else.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use xen_abi::memory::{self, AddToPhysmap};
use xen_abi::{DomId, Errno, Mfn, hvm, hypercall as nr};
use zerocopy::{FromBytes, IntoBytes};

use crate::machine::instructions;

/// Whether hypercalls are made by VMMCALL (AMD) or VMCALL.
static USE_VMMCALL: AtomicBool = AtomicBool::new(false);

/// Makes a hypercall.
///
/// # Safety
///
/// What the arguments point to must be as the call expects, and stay for its length.
pub(super) unsafe fn hypercall(number: u64, args: [u64; 3]) -> Result<u64, Errno> {
    let [mut rdi, mut rsi, mut rdx] = args;
    let result: u64;
    // SAFETY: by the caller's promise; the registers that a debug build of Xen destroys are named.
    unsafe {
        if USE_VMMCALL.load(Ordering::Relaxed) {
            asm!("vmmcall", inlateout("rax") number => result, inlateout("rdi") rdi,
                 inlateout("rsi") rsi, inlateout("rdx") rdx, options(nostack));
        } else {
            asm!("vmcall", inlateout("rax") number => result, inlateout("rdi") rdi,
                 inlateout("rsi") rsi, inlateout("rdx") rdx, options(nostack));
        }
    }
    let _ = (rdi, rsi, rdx);
    Errno::from_rax(result)
}

/// Makes a hypercall of the form `(command, pointer)`.
pub(super) fn op<T: FromBytes + IntoBytes>(
    number: u64,
    command: u64,
    arg: &mut T,
) -> Result<u64, Errno> {
    // SAFETY: the structure is the one that the command is defined for, by the callers.
    unsafe { hypercall(number, [command, core::ptr::from_mut(arg) as u64, 0]) }
}

/// Finds Xen, and how hypercalls are made; `false` when this is another hypervisor.
pub fn detect() -> bool {
    // Xen's leaves may lie behind another interface's, which the toolstack shows first (Viridian).
    let is_xen = (0x4000_0000..0x4001_0000).step_by(0x100).any(|base| {
        let [_, b, c, d] = instructions::cpuid(base, 0);
        [b, c, d].as_bytes() == b"XenVMMXenVMM"
    });
    let [_, b, c, d] = instructions::cpuid(0, 0);
    // By vendor: on the other's processors the instruction is an invalid opcode.
    let is_amd = matches!([b, d, c].as_bytes(), b"AuthenticAMD" | b"HygonGenuine");
    USE_VMMCALL.store(is_amd, Ordering::Relaxed);
    is_xen
}

/// Reads one of the domain's parameters.
pub(super) fn param(index: u32) -> Result<u64, Errno> {
    let mut param = hvm::Param {
        domid: DomId::SELF.0,
        index,
        ..hvm::Param::default()
    };
    op(nr::HVM_OP, hvm::GET_PARAM, &mut param)?;
    Ok(param.value)
}

/// Sets one of the domain's parameters.
pub(super) fn set_param(index: u32, value: u64) -> Result<(), Errno> {
    let mut param = hvm::Param {
        domid: DomId::SELF.0,
        index,
        value,
        ..hvm::Param::default()
    };
    op(nr::HVM_OP, hvm::SET_PARAM, &mut param).map(drop)
}

/// Makes a page that belongs to the host appear at a frame number.
pub(super) fn add_to_physmap(space: u32, index: u64, frame: Mfn) -> Result<(), Errno> {
    let mut add = AddToPhysmap {
        domid: DomId::SELF.0,
        size: 0,
        space,
        idx: index,
        gpfn: frame.0,
    };
    op(nr::MEMORY_OP, memory::op::ADD_TO_PHYSMAP, &mut add).map(drop)
}

/// Returns the domain's UUID.
pub fn uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    // No host refuses a domain its own; zeroes would be a UUID like any other.
    let _ = op(
        nr::XEN_VERSION,
        xen_abi::version::op::GUEST_HANDLE,
        &mut uuid,
    );
    uuid
}
