//! CPUID as user space sees it: natively, and as Xen answers its "forced emulation" form.
//!
//! The fields that name the processor one happens to run on are masked: they differ between two
//! readings on one machine.

#![expect(
    unsafe_code,
    reason = "Xen's forced CPUID is an instruction of its own"
)]

use std::io::{self, Write};

use super::Fingerprint;

/// One leaf's registers: EAX, EBX, ECX, EDX.
type Registers = [u32; 4];

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The plain instruction.
    Native,
    /// With Xen's prefix (`ud2a; "xen"`), which is an invalid instruction anywhere else.
    Forced,
}

fn ask(way: Way, leaf: u32, subleaf: u32) -> Registers {
    match way {
        Way::Native => {
            let found = core::arch::x86_64::__cpuid_count(leaf, subleaf);
            [found.eax, found.ebx, found.ecx, found.edx]
        }
        Way::Forced => forced(leaf, subleaf),
    }
}

fn forced(leaf: u32, subleaf: u32) -> Registers {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: under Xen this is CPUID, which changes these four registers only; elsewhere it ends
    // the process with SIGILL, for which the caller has made a process of its own.  RBX can not
    // be named as an operand, so it is saved by hand.
    unsafe {
        core::arch::asm!(
            "mov {keep}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {keep}, rbx",
            keep = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
            options(nostack),
        );
    }
    // CPUID leaves 32-bit values.
    [eax, (ebx & 0xffff_ffff) as u32, ecx, edx]
}

/// How many subleaves a leaf may have; those that answer all zero after the first are left out.
fn subleaves(leaf: u32) -> u32 {
    match leaf {
        4 | 7 | 0xb | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d | 0x1f | 0x8000_001d
        | 0x8000_0026 => 8,
        0xd => 64,
        // The hypervisor's: time (leaf 3) has three.
        0x4000_0000..=0x4000_ffff => 4,
        _ => 1,
    }
}

/// Masks what names the processor at hand.
fn mask(leaf: u32, registers: Registers) -> Registers {
    let [eax, ebx, ecx, edx] = registers;
    match leaf {
        // Initial APIC id.
        1 => [eax, ebx & 0x00ff_ffff, ecx, edx],
        // x2APIC id.
        0xb | 0x1f | 0x8000_0026 => [eax, ebx, ecx, 0],
        // Extended APIC id, core id, node id.
        0x8000_001e => [0, ebx & !0xff, ecx & !0xff, edx],
        _ => registers,
    }
}

/// The ranges of leaves: basic, hypervisor (at each place where one may announce itself), extended.
const RANGES: [(u32, u32); 6] = [
    (0, 0x40),
    (0x4000_0000, 0x10),
    (0x4000_0100, 0x10),
    (0x4000_0200, 0x10),
    (0x8000_0000, 0x30),
    (0xc000_0000, 0x8),
];

/// All leaves in the order of their numbers.
#[must_use]
pub fn all(way: Way) -> Vec<(u32, u32, Registers)> {
    let mut found = Vec::new();
    for (first, most) in RANGES {
        let last = ask(way, first, 0)[0];
        // Outside its ranges a processor answers anything; only a sensible maximum counts.
        let Some(count) = last
            .checked_sub(first)
            .filter(|_| last >> 16 == first >> 16)
        else {
            continue;
        };
        for leaf in first..=first + count.min(most) {
            for subleaf in 0..subleaves(leaf) {
                let registers = mask(leaf, ask(way, leaf, subleaf));
                if subleaf == 0 || registers.iter().any(|&register| register != 0) {
                    found.push((leaf, subleaf, registers));
                }
            }
        }
    }
    found
}

/// Writes all leaves as lines `leaf.subleaf eax ebx ecx edx`; the body of the helper process.
///
/// # Errors
/// As writing.
pub fn write_lines(way: Way, out: &mut impl Write) -> io::Result<()> {
    for (leaf, subleaf, [eax, ebx, ecx, edx]) in all(way) {
        writeln!(
            out,
            "{leaf:08x}.{subleaf:x} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}"
        )?;
    }
    Ok(())
}

/// Adds both views.  `forced` are the lines of a helper process, or `None` if it died of it.
pub fn collect(print: &mut Fingerprint, forced: Option<&str>) {
    let mut native = Vec::new();
    if write_lines(Way::Native, &mut native).is_ok() {
        add(print, "cpuid", &String::from_utf8_lossy(&native));
    }
    match forced {
        None => print.set("cpuid-forced", "(invalid instruction)"),
        Some(lines) => add(print, "cpuid-forced", lines),
    }
}

fn add(print: &mut Fingerprint, section: &str, lines: &str) {
    for (leaf, registers) in lines.lines().filter_map(|line| line.split_once(' ')) {
        print.set(&format!("{section}/{leaf}"), registers);
    }
}

#[cfg(test)]
mod tests {
    use super::{Way, all, collect, mask};
    use crate::fingerprint::Fingerprint;

    #[test]
    fn this_processor_has_leaves_and_they_stay() {
        let leaves = all(Way::Native);
        assert!(leaves.iter().any(|(leaf, ..)| *leaf == 1));
        assert!(leaves.iter().any(|(leaf, ..)| *leaf == 0x8000_0000));
        let mut one = Fingerprint::default();
        collect(&mut one, None);
        let mut two = Fingerprint::default();
        collect(&mut two, None);
        // Leaf 0xd's size in use and the like must not move; per-processor fields are masked.
        assert_eq!(crate::fingerprint::diff(&one, &two), []);
    }

    #[test]
    fn the_number_of_the_processor_at_hand_is_masked() {
        assert_eq!(mask(1, [1, 0x0302_0800, 3, 4]), [1, 0x0002_0800, 3, 4]);
        assert_eq!(mask(0xb, [1, 2, 3, 7]), [1, 2, 3, 0]);
        assert_eq!(mask(2, [1, 2, 3, 4]), [1, 2, 3, 4]);
    }
}
