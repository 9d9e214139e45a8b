//! Carries control between the guest's kernel, its user programs and the shim: bounce frames in,
//! the `iret` hypercall out.
//!
//! The frames are those of `xen/arch/x86/pv/` as a 64-bit guest sees them: what the CPU would
//! push, preceded by rcx and r11 (which SYSCALL destroys), with the event mask of the interrupted
//! context in bits 39:32 of the CS word.

use xen_abi::GuestVa;
use xen_abi::shared_info::vcpu_info;
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, IretContext, rflags};
use zerocopy::{FromZeros, IntoBytes};

use super::{Assist, Machine, Regs, Vcpu};

/// The guest can not go on: it lacks what it needs to handle an event.  Xen crashes such a domain,
/// and so do we.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doomed(pub &'static str);

/// A handler that is to be entered.
#[derive(Clone, Copy, Debug)]
pub struct Bounce {
    /// Its address.
    pub address: u64,
    /// Error code to push, if the event has one.
    pub error: Option<u64>,
    /// Whether events are masked on entry.
    pub masks_events: bool,
    /// Whether the direction flag is clear on entry, as it is after SYSCALL.
    pub clears_direction: bool,
}

/// Switches between the guest's kernel and user mode: page table and GS base.
pub fn toggle_mode<M: Machine>(m: &mut M, vcpu: &mut Vcpu) -> Result<(), Doomed> {
    let spaces = vcpu.spaces.as_ref().ok_or(Doomed("no page tables"))?;
    let next = if vcpu.in_kernel {
        spaces
            .user()
            .ok_or(Doomed("return to user mode without a user page table"))?
    } else {
        spaces.kernel()
    };
    // Nothing has changed when the switch is refused above, so a crash report shows the mode that
    // the guest was in.
    vcpu.other_gs_base = m.exchange_gs_base(vcpu.other_gs_base);
    vcpu.in_kernel = !vcpu.in_kernel;
    m.switch_page_table(next);
    Ok(())
}

/// Returns the vCPU's event mask.
pub fn events_masked<M: Machine>(m: &M, vcpu: &Vcpu) -> bool {
    m.load8(vcpu.info.frame, vcpu.info.offset + vcpu_info::UPCALL_MASK) != 0
}

/// Sets the vCPU's event mask.
pub fn mask_events<M: Machine>(m: &M, vcpu: &Vcpu, masked: bool) {
    m.store8(
        vcpu.info.frame,
        vcpu.info.offset + vcpu_info::UPCALL_MASK,
        masked.into(),
    );
}

/// Makes the guest's kernel enter a handler, as if the CPU had interrupted it.
pub fn bounce<M: Machine>(
    m: &mut M,
    vcpu: &mut Vcpu,
    assist: Assist,
    regs: &mut Regs,
    to: Bounce,
) -> Result<(), Doomed> {
    let mut frame = [0; 8];
    let mut len = 0;
    let mut push = |value: u64| {
        frame[len] = value;
        len += 1;
    };
    push(regs.rcx);
    push(regs.r11);
    to.error.into_iter().for_each(&mut push);
    enter(m, vcpu, assist, regs, to, &mut frame, len)
}

/// Enters the failsafe callback: reloading the guest's own context faulted.
///
/// Its frame carries the data selectors as well; the shim never found one of them bad, so all are
/// given as null and what was bad is CS, SS or the address.
pub fn failsafe<M: Machine>(
    m: &mut M,
    vcpu: &mut Vcpu,
    assist: Assist,
    regs: &mut Regs,
) -> Result<(), Doomed> {
    if vcpu.failsafe.address == 0 {
        return Err(Doomed("bad context to return to, and no failsafe callback"));
    }
    let to = Bounce {
        address: vcpu.failsafe.address,
        error: None,
        masks_events: vcpu.failsafe.masks_events,
        clears_direction: false,
    };
    let mut frame = [0; 11];
    frame[0] = regs.rcx;
    frame[1] = regs.r11;
    enter(m, vcpu, assist, regs, to, &mut frame, 6)
}

/// Completes `frame`, whose first `len` words are set, with the interrupted context, writes it to
/// the guest kernel's stack and continues in the handler.
fn enter<M: Machine>(
    m: &mut M,
    vcpu: &mut Vcpu,
    assist: Assist,
    regs: &mut Regs,
    to: Bounce,
    frame: &mut [u64],
    len: usize,
) -> Result<(), Doomed> {
    // As it is before the handler masks events: the frame shows what was interrupted.
    let masked = events_masked(m, vcpu);
    // In ring 3 every saved CS has RPL 3. A kernel looks there for whether it has interrupted
    // itself, so for its own mode the RPL is cleared, as in Xen's `create_bounce_frame`.
    let (mut cs, stack) = if vcpu.in_kernel {
        (regs.cs & !3, regs.rsp)
    } else {
        (regs.cs, vcpu.kernel_sp)
    };
    cs = cs & 0xffff | u64::from(masked) << 32;
    let mut flags = regs.rflags & !(rflags::IF | rflags::IOPL);
    if !masked {
        flags |= rflags::IF;
    }
    if assist.contains(Assist::ARCHITECTURAL_IOPL) {
        flags |= u64::from(vcpu.iopl) << 12;
    }
    frame[len..len + 5].copy_from_slice(&[regs.rip, cs, flags, regs.rsp, regs.ss & 0xffff]);
    let frame = &frame[..len + 5];

    // Before the frame is written: the stack need be mapped in the kernel's tables only.
    if !vcpu.in_kernel {
        toggle_mode(m, vcpu)?;
    }
    // The CPU aligns the stack like this in 64-bit mode. The pointer is whatever the guest says;
    // where it wraps around, `write_guest` decides about the address that comes out.
    let top = (stack & !15).wrapping_sub(size_of_val(frame) as u64);
    m.write_guest(GuestVa(top), frame.as_bytes())
        .map_err(|_| Doomed("the kernel stack can not take an exception frame"))?;
    if to.masks_events {
        mask_events(m, vcpu, true);
    }
    regs.rip = to.address;
    regs.cs = FLAT_RING3_CS64.into();
    regs.ss = FLAT_RING3_DS.into();
    regs.rsp = top;
    // What the CPU clears on an interrupt, and AC (Xen: `create_bounce_frame`): the handler runs
    // neither stepped nor with alignment checks because a program asked for them.
    regs.rflags &= !(rflags::TF | rflags::VM | rflags::RF | rflags::NT | rflags::AC | rflags::IOPL);
    if to.clears_direction {
        regs.rflags &= !rflags::DF;
    }
    // Ring 3 always runs with interrupts on, or the host's upcall would not get control. What masks
    // events for the guest is the byte in `vcpu_info`.
    regs.rflags |= rflags::IF | rflags::RESERVED;
    // The handler takes rcx and r11 from the frame, so it can be entered by SYSRET, which is faster
    // than IRET.
    regs.rcx = regs.rip;
    regs.r11 = regs.rflags;
    regs.vector = Regs::SYSCALL;
    Ok(())
}

/// Carries out the `iret` hypercall.
pub fn iret<M: Machine>(
    m: &mut M,
    vcpu: &mut Vcpu,
    assist: Assist,
    regs: &mut Regs,
) -> Result<(), Doomed> {
    let mut context = IretContext::new_zeroed();
    // The frame is on the kernel's stack: it is read before the tables change.
    m.read_guest(GuestVa(regs.rsp), context.as_mut_bytes())
        .map_err(|_| Doomed("iret without a frame on the stack"))?;
    // Only the kernel makes this hypercall, so one toggle leads to user mode.
    if context.cs & 3 == 3 {
        toggle_mode(m, vcpu)?;
    }
    if assist.contains(Assist::ARCHITECTURAL_IOPL) {
        vcpu.iopl = (context.rflags >> 12 & 3) as u8;
    }
    regs.rip = context.rip;
    regs.cs = context.cs & 0xffff | 3;
    regs.ss = context.ss & 0xffff | 3;
    regs.rsp = context.rsp;
    // Everything here is the guest's word. IOPL and VM are not for it to set, and IF stays on.
    regs.rflags = context.rflags & rflags::GUEST | rflags::IF | rflags::RESERVED;
    regs.rax = context.rax;
    // SYSRET loads rip from rcx and rflags from r11, so it can return only to a program that
    // expects these two to be lost.
    if context.flags & IretContext::FLAG_IN_SYSCALL != 0 {
        regs.rcx = regs.rip;
        regs.r11 = regs.rflags;
    } else {
        regs.rcx = context.rcx;
        regs.r11 = context.r11;
        regs.vector = 0;
    }
    // An IRET unblocks both, as on bare metal; Xen's `do_iret` does it as well.
    vcpu.nmi_blocked = false;
    vcpu.machine_check_blocked = false;
    mask_events(m, vcpu, context.rflags & rflags::IF == 0);
    Ok(())
}
