//! The shim: a PVH guest that hosts an unmodified Xen PV kernel and takes its migration upon
//! itself.
//!
//! **Privilege.** Xen runs us as it runs any PVH guest.  We run in ring 0 of that guest, the PV
//! kernel and its programs in ring 3; what tells the two apart is a flag of the vCPU and the page
//! table that is loaded.
//!
//! **Memory.** The guest's machine frames are our own guest frame numbers, which never change, so
//! its page tables are used by the CPU as they are.  We keep the image at 2 MiB, a heap, and a pool
//! of frames; the guest gets the rest.  L4 slots 256–271 are ours in every address space
//! (`machine/layout.rs`).
//!
//! **Life.** `machine/boot.s` enters long mode, [`start`] takes the machine over, unpacks the kernel
//! and builds the guest around it, `machine/entry.rs` runs it.  From then on we run only when ring 3
//! is left: [`Guest::enter`](unmoved_shim::guest::Guest::enter) serves what brought us in and whatever
//! the host has announced meanwhile.  Interrupts are on in ring 3 and off in ring 0.
//!
//! **Migration.** `migrate` in the library stops the vCPUs, drains the devices, suspends, and
//! builds everything that faces the host anew.

#![expect(unsafe_code, reason = "the linker and the entry code name symbols")]
#![no_std]
#![no_main]

#[cfg(target_feature = "avx")]
compile_error!("the entry path saves only xmm0-xmm15 for the guest; build without AVX");

extern crate alloc;

mod machine;
mod start;

use core::panic::PanicInfo;

use log::error;
use machine::{entry, xen};

/// Entered from `boot.s` with the physical address of the start info.
#[unsafe(no_mangle)]
extern "C" fn shim_main(start_info: u32) -> ! {
    machine::debug::init(log::LevelFilter::Info);
    let (guest, regs) = start::start(start_info.into());
    entry::run(guest, &regs)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    error!("panic: {info}");
    let frame: u64;
    // SAFETY: reading the frame pointer has no effect.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    entry::backtrace(frame);
    xen::crash()
}
