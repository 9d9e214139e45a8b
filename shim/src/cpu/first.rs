//! The state in which a guest's first vCPU begins, in one place: the image and the tests' machine
//! both start from it.
//!
//! It is what a PV guest finds under Xen, as libxc's builder
//! (`tools/libs/guest/xg_dom_x86.c`) and `arch_set_info_guest` leave it: whatever a guest can read
//! before it has written it comes from here, and nothing of it is the shim's.

use xen_abi::mmu::Level;
use xen_abi::shared_info::vcpu_info;
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, rflags};
use xen_abi::{Errno, Mfn};

use super::{InfoPage, Machine, Regs, Vcpu};
use crate::boot::Start;
use crate::mem::Frames;
use crate::mm::Mm;
use crate::registers::{cr0, cr4};

/// CR0 without TS: PE, MP, ET, NE, WP, AM, PG.  The CPU runs with it too, since SMSW shows its low
/// half to ring 3, and alignment is checked there only with AM.
pub const CR0: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
/// CR4 as a guest first reads it: the bits that it always reads as set.
pub const CR4: u64 = cr4::PAE | cr4::MCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// XCR0: x87 and SSE.
pub const XCR0: u64 = 3;
/// DR6: nothing has happened.
pub const DR6: u64 = 0xffff_0ff0;
/// DR7: no breakpoint is armed.
pub const DR7: u64 = 0x400;

/// The debug registers, by number.
pub const DEBUG: [u64; 8] = [0, 0, 0, 0, 0, 0, DR6, DR7];

/// The registers with which a PV kernel begins.
pub fn registers(start: &Start) -> Regs {
    Regs {
        rip: start.entry,
        rsp: start.stack,
        rsi: start.start_info,
        cs: FLAT_RING3_CS64.into(),
        ss: FLAT_RING3_DS.into(),
        rflags: rflags::IF | rflags::RESERVED,
        ..Regs::default()
    }
}

/// Makes the first vCPU, in the page tables that were built for it, with its events masked.
///
/// # Errors
/// `EINVAL` when the tables can not be page tables.
pub fn vcpu<F: Frames>(mm: &mut Mm<'_, F>, start: &Start, shared_info: Mfn) -> Result<Vcpu, Errno> {
    let info = InfoPage {
        frame: shared_info,
        offset: 0,
        is_registered: false,
    };
    let mut vcpu = Vcpu::new(0, info);
    vcpu.spaces = Some(mm.enter(start.l4, None)?);
    // As Xen's builder leaves it: the first table is pinned, and the kernel unpins it.
    let _ = mm.pin(Level::L4, start.l4)?;
    vcpu.kernel_ss = FLAT_RING3_DS.into();
    vcpu.kernel_sp = start.stack;
    vcpu.is_initialised = true;
    vcpu.is_up = true;
    // The builder leaves events masked: there is no handler before the kernel sets one.
    mm.frames.store8(shared_info, vcpu_info::UPCALL_MASK, 1);
    Ok(vcpu)
}

/// Loads what of a first vCPU's state is the machine's.  The general registers and those of the
/// FPU come on the way into ring 3.
pub fn load<M: Machine>(m: &mut M, vcpu: &Vcpu, start: &Start) {
    m.set_guest_cr4(vcpu.cr4);
    m.set_xcr0(XCR0);
    m.set_task_switched(vcpu.task_switched);
    m.set_fs_base(0);
    m.exchange_gs_base(0);
    quiet_debug_registers(m, &vcpu.debug);
    m.load_page_table(start.l4);
}

/// Loads the debug registers, the one that arms the others while they are without effect.
pub(crate) fn quiet_debug_registers<M: Machine>(m: &mut M, values: &[u64; 8]) {
    m.set_debug_register(7, DR7);
    for index in [0, 1, 2, 3, 6, 7] {
        m.set_debug_register(index, values[usize::from(index)]);
    }
}
