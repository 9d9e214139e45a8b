//! Privileged instructions, each as one function.
//!
//! All of them are safe to *call* only in the sense that the shim is the only program on this
//! machine: the functions whose effect can break Rust's own assumptions are `unsafe`.

use core::arch::asm;

use unmoved_shim::registers::msr;

/// Reads CR2.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads CR3.
///
/// # Safety
///
/// The table must map the image, the stack and the direct map as the running one does.
pub unsafe fn set_cr3(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Loads CR4.
///
/// # Safety
///
/// PAE, OSFXSR and whatever the running code depends on must stay as they are, and every set bit
/// must be supported.
pub unsafe fn set_cr4(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Drops the translation of one page.
pub fn invlpg(va: u64) {
    // SAFETY: dropping a translation changes no memory.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Reads the time stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: the shim runs in ring 0, where CR4.TSD does not matter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes CPUID; element order eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Reads a register that exists.
pub fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the callers name registers of `msr`, which every long-mode CPU has.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a register that exists.
///
/// # Safety
///
/// The value must be legal, and not one that changes what running code depends on.
pub unsafe fn write_msr(index: u32, value: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: the only port ever written is the host's debug port.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing runs after it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Reads XCR0.
pub fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers checked that CR4.OSXSAVE is set.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
///
/// Bits 0 and 1 must be set and every other set bit supported, in a legal combination.
pub unsafe fn xsetbv(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nomem, nostack, preserves_flags));
    }
}

/// Replaces the guest's GS base, which SWAPGS put aside on entry, and returns the old one.
///
/// # Safety
///
/// CR4.FSGSBASE must be set, and `base` canonical.
pub unsafe fn exchange_guest_gs(base: u64) -> u64 {
    let old;
    // SAFETY: between the two SWAPGS nothing uses the shim's own GS base, and interrupts are off.
    unsafe {
        asm!("swapgs", "rdgsbase {old}", "wrgsbase {new}", "swapgs",
             old = out(reg) old, new = in(reg) base, options(nomem, nostack, preserves_flags));
    }
    old
}

/// Reads the FS base; needs CR4.FSGSBASE.
pub fn fs_base() -> u64 {
    read_msr(msr::FS_BASE)
}

/// Loads a debug register.
///
/// # Safety
///
/// An address must not lie in the shim, and DR6 and DR7 must have no reserved bit wrong.
pub unsafe fn set_debug_register(index: u8, value: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        match index {
            0 => asm!("mov dr0, {}", in(reg) value, options(nostack, preserves_flags)),
            1 => asm!("mov dr1, {}", in(reg) value, options(nostack, preserves_flags)),
            2 => asm!("mov dr2, {}", in(reg) value, options(nostack, preserves_flags)),
            3 => asm!("mov dr3, {}", in(reg) value, options(nostack, preserves_flags)),
            6 => asm!("mov dr6, {}", in(reg) value, options(nostack, preserves_flags)),
            _ => asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)),
        }
    }
}

/// Reads DR6.
pub fn dr6() -> u64 {
    let value;
    // SAFETY: reading a debug register has no effect.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
