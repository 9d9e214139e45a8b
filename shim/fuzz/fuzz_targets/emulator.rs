//! Any bytes as instructions of a guest, on any registers: privileged ones on a vCPU, stores on a
//! live page table.
//!
//! Nothing may panic; what is given back to the guest has changed nothing; a process changes no
//! privileged state; and no sequence of stores makes a page table, or a frame of the shim, writable.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::cpu::Regs;
use unmoved_shim::emulate::address::SegmentBases;
use unmoved_shim::emulate::live::write_fault;
use unmoved_shim::emulate::privileged::{self, GuestCpu, general_protection, invalid_opcode};
use unmoved_shim::emulate::{CodeSize, ptstore};
use unmoved_shim::mem::{BadAddress, Frames, GuestMemory};
use unmoved_shim::testing::FakeFrames;
use unmoved_shim::mm::{Ledger, Mm, ShimSlots, Tlb};
use unmoved_shim::testing::{Bench, TestGuest, amd, intel, policies};
use xen_abi::mmu::{ENTRIES, Level, Pte, XEN_SLOTS};
use xen_abi::{GuestVa, Mfn};

/// An instruction and the registers it is tried on take so many bytes of input.
const STEP: usize = 1 + 15 + 8 * 8;
/// Frames 4 to 7 are L4 to L1 tables, those from here on plain memory.
const FIRST_PLAIN: u64 = 8;
const FRAMES: u64 = 16;
const L1: Mfn = Mfn(7);
/// Where the guest maps its L1 table, read-only.
const TABLE_AT: u64 = 0x1000;
const KERNEL: u64 = Pte::PRESENT | Pte::ACCESSED | Pte::DIRTY;

struct NoFlush;

impl Tlb for NoFlush {
    fn flush_everything(&self) {}
}

/// The source of `movs`: any address holds its own number.
struct Source;

impl GuestMemory for Source {
    fn read_guest(&self, va: GuestVa, buf: &mut [u8]) -> Result<(), BadAddress> {
        let len = buf.len();
        buf.copy_from_slice(&va.0.to_le_bytes()[..len]);
        Ok(())
    }

    fn write_guest(&self, _: GuestVa, _: &[u8]) -> Result<(), BadAddress> {
        Err(BadAddress)
    }
}

/// Takes options, code and registers from a step of the input.
fn step(input: &[u8]) -> (u8, &[u8], Regs) {
    let (code, values) = input[1..].split_at(15);
    let mut regs = Regs {
        rip: 0x40_0000,
        rflags: 0x202,
        ..Default::default()
    };
    for (n, value) in (0..).zip(values.chunks_exact(8)) {
        let value = u64::from_le_bytes(value.try_into().expect("eight bytes"));
        regs.set_gpr(n, value);
        regs.set_gpr(n + 8, !value);
    }
    (input[0], code, regs)
}

/// What a process must not be able to change.
fn privileged_state(guest: &TestGuest) -> impl PartialEq + core::fmt::Debug + use<> {
    let vcpu = &guest.vcpus[0];
    let control = (vcpu.task_switched, guest.m.root, vcpu.cr4, guest.m.xcr0);
    let bases = (guest.m.fs_base, guest.m.gs_base, vcpu.other_gs_base);
    let msrs = (vcpu.misc_features, vcpu.spec_ctrl, vcpu.tsc_aux);
    (control, vcpu.debug, bases, msrs, vcpu.breakpoint_masks)
}

fn privileged_instruction(bench: &mut Bench, options: u8, code: &[u8], before: &Regs) {
    let guest = &mut bench.guest;
    (guest.cpuid, guest.msrs) = policies(if options & 1 == 0 { intel } else { amd });
    let is_process = options & 2 != 0;
    let vcpu = &mut guest.vcpus[0];
    vcpu.in_kernel = !is_process;
    vcpu.iopl = options >> 2 & 3;
    vcpu.misc_features = u64::from(options >> 4 & 1);
    let size = if options & 0x20 == 0 {
        CodeSize::Bits64
    } else {
        CodeSize::Bits32
    };
    let untouched = privileged_state(guest);
    let mut regs = *before;
    let mut cpu = GuestCpu::new(guest, 0);
    let outcome = if options & 0x40 == 0 {
        general_protection(code, size, &mut regs, &mut cpu)
    } else {
        invalid_opcode(code, size, &mut regs, &mut cpu)
    };
    if outcome == privileged::Outcome::NotHandled {
        assert_eq!(&regs, before, "{code:02x?} was given back changed");
    }
    assert!(regs.rip - before.rip <= 15);
    assert!(
        !is_process || privileged_state(&bench.guest) == untouched,
        "{code:02x?} by a process"
    );
    bench.guest.vcpus[0].in_kernel = true;
    bench.check();
}

struct Machine {
    frames: FakeFrames,
    ledger: Ledger,
    slots: ShimSlots,
}

impl Machine {
    fn new() -> Self {
        let frames = FakeFrames::new(FRAMES);
        let mut ledger = Ledger::new(Mfn(FRAMES), &[(Mfn(0), FRAMES)]).expect("small");
        for mfn in 4..FRAMES {
            ledger.give_to_guest(Mfn(mfn)).expect("the shim's");
        }
        for table in 4..7 {
            let entry = Pte::new(Mfn(table + 1), KERNEL | Pte::RW);
            frames.store64(Mfn(table), 0, entry.0);
        }
        frames.store64(L1, 8, Pte::new(L1, KERNEL).0);
        let slots = ShimSlots([0; XEN_SLOTS]);
        let mut machine = Self {
            frames,
            ledger,
            slots,
        };
        assert!(machine.mm().pin(Level::L4, Mfn(4)).is_ok());
        machine
    }

    fn mm(&mut self) -> Mm<'_, FakeFrames> {
        Mm {
            frames: &self.frames,
            ledger: &mut self.ledger,
            slots: &self.slots,
            tlb: &NoFlush,
        }
    }

    /// Tries one store to the entry that `fault` falls into.
    fn store(&mut self, options: u8, code: &[u8], before: &Regs) {
        let mut regs = *before;
        // Register operands are usually aimed at the table, as a random address never hits it.
        let fault = TABLE_AT + (before.gpr(7) & 0xfff);
        if options & 0x80 == 0 {
            regs.set_gpr(7, fault);
        }
        let aimed = regs;
        let bases = SegmentBases::default();
        let outcome = write_fault(
            code,
            &mut regs,
            bases,
            fault,
            Mfn(4),
            &mut self.mm(),
            &Source,
        );
        if !matches!(outcome, ptstore::Outcome::Done(_)) {
            assert_eq!(regs, aimed, "{code:02x?}: {outcome:?}");
        }
        assert!(regs.rip - aimed.rip <= 15);
        for index in 0..ENTRIES {
            let entry = Pte(self.frames.load64(L1, 8 * index));
            if entry.is_present() {
                let frame = entry.frame().0;
                assert!(
                    (4..FRAMES).contains(&frame),
                    "{code:02x?} maps frame {frame}"
                );
                let writable = entry.is_writable();
                assert!(
                    frame >= FIRST_PLAIN || !writable,
                    "{code:02x?} exposes table {frame}"
                );
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut machine = Machine::new();
    let mut bench = Bench::new();
    for input in input.chunks_exact(STEP).take(8) {
        let (options, code, regs) = step(input);
        privileged_instruction(&mut bench, options, code, &regs);
        machine.store(options, code, &regs);
    }
});
