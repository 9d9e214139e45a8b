//! Nothing of the hypervisor's may reach the guest: neither in the frames that it was given, nor in
//! what it can read beside them.

use xen_abi::mmu::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, INVALID_M2P_ENTRY};
use xen_abi::{Mfn, PAGE_SIZE, Pfn};

use crate::console::say;
use crate::m2p;
use crate::memory::{self, RO, VIRT_BASE};
use crate::trap::{self, End, Regs, attempt};
use crate::verdict::{Answer, Verdicts};

/// Value of `m2p` for a frame that several domains share (`SHARED_M2P_ENTRY`).
const SHARED_M2P_ENTRY: u64 = !0 - 1;

/// No register came with anything in it but what a CPU has after a reset.
pub fn registers_at_start(verdicts: &mut Verdicts) {
    const FCW: usize = 0;
    const MXCSR: usize = 24;
    const REGISTERS: core::ops::Range<usize> = 32..416;
    let (fpu, gprs) = trap::first_registers();
    for (n, &value) in gprs.iter().enumerate().filter(|(_, value)| **value != 0) {
        say!("leak: general register {n} began with {value:#x}");
    }
    let general = gprs.iter().all(|&value| value == 0);
    verdicts.note(
        format_args!("leak.first-general"),
        Answer::Is(if general { "clear" } else { "dirty" }),
        general,
    );
    for (n, &byte) in fpu.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        if REGISTERS.contains(&n) {
            say!("leak: byte {n} of the FPU's state began as {byte:#x}");
        }
    }
    // x87 and xmm registers; between the control words, where the last instruction was.
    let clear = fpu[REGISTERS].iter().all(|&byte| byte == 0)
        && fpu[FCW + 2..MXCSR].iter().all(|&byte| byte == 0);
    let control = u64::from(fpu[FCW]) | u64::from(fpu[FCW + 1]) << 8;
    let mxcsr = u64::from(fpu[MXCSR]) | u64::from(fpu[MXCSR + 1]) << 8;
    verdicts.note(
        format_args!("leak.first-fpu (control {control:#x}, {mxcsr:#x})"),
        Answer::Is(if clear { "clear" } else { "dirty" }),
        clear && control == 0x37f && mxcsr == 0x1f80,
    );
}

/// Every frame that the builder did not use came clear.
pub fn given_at_start(verdicts: &mut Verdicts) {
    let first = (memory::mapped_end() - VIRT_BASE) >> 12;
    let window = memory::window(1);
    let (mut dirty, mut looked) = (0u64, 0u64);
    for pfn in first..memory::nr_pages() {
        if memory::map(window, memory::mfn(Pfn(pfn)), RO) != 0 {
            continue;
        }
        looked += 1;
        if let Some(at) = first_word(window, 0) {
            if dirty < 4 {
                // SAFETY: the window is mapped.
                let word = unsafe { (at as *const u64).read_volatile() };
                say!(
                    "leak: frame {pfn:#x} offset {:#x}: {word:#018x}",
                    at & 0xfff
                );
            }
            dirty += 1;
        }
    }
    memory::map(window, Mfn(0), 0);
    let right = dirty == 0 && looked == memory::nr_pages().saturating_sub(first);
    verdicts.note(
        format_args!("leak.first-frames ({looked} frames, {dirty} dirty)"),
        Answer::Is(if right { "clear" } else { "dirty" }),
        right,
    );
}

/// The first word in a page that is not `wanted`.
pub fn first_word(page: u64, wanted: u64) -> Option<u64> {
    (page..page + PAGE_SIZE as u64)
        .step_by(8)
        // SAFETY: callers map the page.
        .find(|&at| unsafe { (at as *const u64).read_volatile() } != wanted)
}

/// Whether a page holds `word` everywhere, or nothing.
pub fn holds_only(page: u64, word: u64) -> bool {
    first_word(page, 0).is_none() || first_word(page, word).is_none()
}

/// Of the hypervisor's part of the address space only the machine-to-physical table can be read,
/// and it says nothing but what is the guest's.
pub fn visible(verdicts: &mut Verdicts) {
    const GIB: usize = 1 << 30;
    const MIB2: usize = 2 << 20;
    let m2p_end = HYPERVISOR_VIRT_START + (1 << 39);
    let mut readable = 0u64;
    let mut probe = |from: u64, to: u64, step: usize| {
        for va in (from..to).step_by(step) {
            let mut regs = Regs::marked();
            regs.rsi = va;
            if attempt(&[0x8a, 0x06], &mut regs) == End::Done {
                if readable < 4 {
                    say!("leak: {va:#x} can be read");
                }
                readable += 1;
            }
        }
    };
    probe(m2p_end, HYPERVISOR_VIRT_END, GIB);
    // Where Xen and the shim keep descriptor windows, text and the direct map.
    for start in [
        0xffff_8200_0000_0000u64,
        0xffff_82d0_0000_0000,
        0xffff_82d0_4000_0000,
        0xffff_8300_0000_0000,
    ] {
        probe(start, start + GIB as u64, MIB2);
        probe(start, start + MIB2 as u64, PAGE_SIZE);
    }
    verdicts.note(
        format_args!("leak.hypervisor-range ({readable} readable)"),
        Answer::Is(if readable == 0 { "hidden" } else { "readable" }),
        readable == 0,
    );
    m2p_entries(verdicts);
}

/// On real Xen the table also tells of other domains, by design, and only what it says of this one
/// can be held against it.
fn m2p_entries(verdicts: &mut Verdicts) {
    let (mut own, mut none, mut strange) = (0u64, 0u64, 0u64);
    let mut frame = 0;
    // Up to the first page of it that is not there.
    while let Some(pfn) = m2p::m2p(Mfn(frame)) {
        match pfn {
            INVALID_M2P_ENTRY | SHARED_M2P_ENTRY => none += 1,
            pfn if pfn < memory::nr_pages() && memory::mfn(Pfn(pfn)) == Mfn(frame) => own += 1,
            _ => {
                if strange < 4 {
                    say!("leak: m2p[{frame:#x}] = {pfn:#x}");
                }
                strange += 1;
            }
        }
        frame += 1;
    }
    verdicts.note(
        format_args!("leak.m2p ({own} own, {none} invalid, {strange} strange)"),
        Answer::Is(if strange == 0 { "own" } else { "strange" }),
        strange == 0,
    );
}
