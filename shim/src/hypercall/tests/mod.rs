//! Each family of hypercalls, made by a whole guest: answers, error numbers and effects are those
//! of Xen (`xen/arch/x86/pv/`, `xen/common/`), whose order of checks decides which error wins.

mod callbacks;
mod evtchn;
mod memory;
mod misc;
mod mmu;
mod multicall;
mod sched;
mod segments;
mod steps;
mod timers;
mod vcpu;
mod version;

use xen_abi::DomId;

/// An address that no page table translates.
const UNMAPPED: u64 = 0x7000_0000_0000;
/// One in the hypervisor's part of the address space.
const HOLE: u64 = 0xffff_8300_0000_0000;
/// One that is not canonical.
const WILD: u64 = 0x8000_0000_0000;
/// `DOMID_SELF` as an argument.
const SELF: u64 = DomId::SELF.0 as u64;
