//! Any sequence of hypercalls, traps, moves and plain memory accesses, with arguments that like to
//! be addresses, frames and entries: the shim serves or refuses, or ends the domain, and after each
//! step no table leads to anything of the shim's or is writable, also not by what a CPU may still
//! remember, and the ledger's counts are those of a recount.

#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use libfuzzer_sys::fuzz_target;
use unmoved_shim::cpu::{Regs, UPCALL_VECTOR};
use unmoved_shim::host::{Arrival, HostEvent};
use unmoved_shim::mem::GuestMemory;
use unmoved_shim::testing::{Bench, Ended, Journey};
use xen_abi::hypercall as nr;
use xen_abi::mmu::Pte;
use xen_abi::{DomId, GuestVa, Mfn};
use zerocopy::IntoBytes;

/// The calls that are made, those that change the most several times.
const CALLS: [u64; 32] = [
    nr::MMU_UPDATE,
    nr::MMU_UPDATE,
    nr::MMU_UPDATE,
    nr::MMUEXT_OP,
    nr::MMUEXT_OP,
    nr::MMUEXT_OP,
    nr::UPDATE_VA_MAPPING,
    nr::UPDATE_VA_MAPPING,
    nr::UPDATE_VA_MAPPING,
    nr::MEMORY_OP,
    nr::MEMORY_OP,
    nr::MULTICALL,
    nr::SET_GDT,
    nr::UPDATE_DESCRIPTOR,
    nr::VCPU_OP,
    nr::EVENT_CHANNEL_OP,
    nr::SCHED_OP,
    nr::SET_TIMER_OP,
    nr::SET_TRAP_TABLE,
    nr::CALLBACK_OP,
    nr::SET_CALLBACKS,
    nr::NMI_OP,
    nr::STACK_SWITCH,
    nr::SET_SEGMENT_BASE,
    nr::FPU_TASKSWITCH,
    nr::SET_DEBUGREG,
    nr::GET_DEBUGREG,
    nr::XEN_VERSION,
    nr::CONSOLE_IO,
    nr::PHYSDEV_OP,
    nr::VM_ASSIST,
    nr::IRET,
];

/// Pages that the guest plays with: data, and tables to be.
const PAGES: u64 = 12;

/// The input as a list of operands.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn raw(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn frame(&mut self, bench: &Bench) -> Option<Mfn> {
        let byte = u64::from(self.byte()?);
        let layout = &bench.layout;
        let tables = layout.tables.end - layout.tables.start;
        Some(match byte {
            0..128 => bench.mfn_of_page(byte % PAGES),
            128..192 => bench.tables()[(byte % tables) as usize],
            // Mapped nowhere at first.
            192..240 => bench.spare(byte % 16),
            240..244 => Bench::SHARED_INFO,
            244..246 => Bench::STORE,
            246..250 => Bench::SHIM,
            250..253 => Mfn(Bench::END.0 - 1),
            253 => Bench::END,
            254 => Mfn(0),
            _ => Mfn(u64::MAX),
        })
    }

    fn va(&mut self, bench: &Bench) -> Option<u64> {
        let byte = u64::from(self.byte()?);
        Some(match byte {
            0..160 => bench.page(byte % PAGES) + u64::from(self.byte()? % 32) * 8,
            // The tables are mapped, too.
            160..200 => bench.layout.va(bench.layout.tables.start + byte % 8),
            200..220 => Bench::USER + byte % 3 * 4096,
            220..240 => bench.page(byte % PAGES) + 4096 - byte % 16,
            240..244 => 0xffff_8300_0000_0000,
            244..248 => 0x8000_0000_0000,
            248..252 => 0,
            _ => u64::MAX - byte,
        })
    }

    fn pte(&mut self, bench: &Bench) -> Option<u64> {
        let frame = self.frame(bench)?;
        let flags = u64::from(self.byte()?);
        let high = [0, Pte::GUEST_KERNEL, Pte::NX, 1 << 51][(flags >> 5 & 3) as usize];
        Some(Pte::new(frame, flags & 0x87 | high).0)
    }

    /// A word that may mean something.
    fn word(&mut self, bench: &Bench) -> Option<u64> {
        Some(match self.byte()? {
            0..64 => self.byte()?.into(),
            64..112 => self.va(bench)?,
            112..144 => self.frame(bench)?.0,
            144..176 => self.pte(bench)?,
            // The machine address of an entry, with a command.
            176..216 => {
                let (index, command) = (self.byte()?, self.byte()?);
                (self.frame(bench)?.0 << 12) + u64::from(index) * 8 + u64::from(command % 4)
            }
            216..228 => DomId::SELF.0.into(),
            228..234 => 0,
            234..240 => 0x00cf_9300_0000_ffff,
            240..250 => 1 << (self.byte()? % 64),
            _ => self.raw()?,
        })
    }
}

/// Performs the next step; `None` at the end of the input.
fn step(bench: &mut Bench, input: &mut Bytes<'_>) -> Option<()> {
    if bench.guest.vcpus[0].in_kernel {
        // A kernel chooses its stack, and in the end one that is there.
        bench.regs.rsp = bench.page(90) + 1024;
    }
    match input.byte()? % 32 {
        0..14 => {
            let number = CALLS[usize::from(input.byte()? % 32)];
            let mut args = [0; 4];
            for arg in &mut args {
                *arg = input.word(bench)?;
            }
            if matches!(number, nr::MMU_UPDATE | nr::MMUEXT_OP) {
                // Those that are refused for their domain are not worth the time.
                (args[1], args[3]) = (args[1] & 3, DomId::SELF.0.into());
            }
            bench.syscall(number, &args);
        }
        14..24 => {
            let at = input.va(bench)?;
            for index in 0..u64::from(input.byte()? % 8) {
                let word = input.word(bench)?;
                let va = GuestVa(at.wrapping_add(index * 8));
                let _ = bench.guest.m.write_guest(va, word.as_bytes());
            }
        }
        24 => {
            let mut byte = [0];
            let va = GuestVa(input.va(bench)?);
            let _ = bench.guest.m.read_guest(va, &mut byte);
        }
        25 | 26 => {
            bench.guest.m.fault_address = input.va(bench)?;
            bench.regs.rip = input.va(bench)?;
            bench.regs.rdi = bench.guest.m.fault_address;
            bench.regs.rax = input.word(bench)?;
            let vector = [1, 3, 6, 7, 13, 14, 14, 14, 0x80, 11][usize::from(input.byte()? % 10)];
            let error = u64::from(input.byte()? % 32);
            bench.trap(vector, error);
        }
        27 => {
            let ways = [
                Regs::SYSCALL,
                Regs::SYSCALL32,
                Regs::SYSENTER,
                Regs::FAILED_IRET,
            ];
            bench.enter_as(ways[usize::from(input.byte()? % 4)], 0);
        }
        28 => {
            let page = bench.page(90);
            let mut words = [0; 9];
            for word in &mut words {
                *word = input.word(bench)?;
            }
            if bench.guest.vcpus[0].in_kernel {
                let _ = bench.guest.m.write_guest(GuestVa(page), words.as_bytes());
                bench.regs.rsp = page;
                bench.syscall(nr::IRET, &[]);
            }
        }
        29 => {
            bench.guest.m.clock.pass(u64::from(input.byte()?) << 24);
            bench.guest.host.announce();
            bench.trap(UPCALL_VECTOR, 0);
        }
        30 => {
            // Seen in the middle of the next list.
            bench.guest.host.events.push_back(HostEvent::Console);
        }
        _ => {
            let kind = input.byte()?;
            let arrival = if kind % 3 == 0 {
                Arrival::SameDomain
            } else {
                Arrival::NewDomain
            };
            let uptime = input.raw()? >> 8;
            let wall = bench.guest.host.wall() + u64::from(kind);
            bench.guest.host.journeys.push_back(if kind % 3 == 2 {
                Journey::Cancelled
            } else {
                Journey::Moved {
                    arrival,
                    uptime,
                    wall,
                }
            });
            let host = &mut bench.guest.host;
            host.in_dom0(|dom0| dom0.ask_for_suspend());
            bench.trap(UPCALL_VECTOR, 0);
        }
    }
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let mut bench = Bench::new();
    bench.guest.host.ends_idle = true;
    let Some(first) = input.byte() else {
        return;
    };
    bench.handlers_for_user();
    if first & 1 != 0 {
        bench.make_user();
    }
    if first & 2 != 0 {
        bench.guest.vcpus[0].failsafe.address = Bench::HANDLER;
        bench.guest.vcpus[0].syscall.address = Bench::HANDLER;
        bench.listen(Bench::HANDLER);
    }
    bench.check();
    loop {
        let result = catch_unwind(AssertUnwindSafe(|| step(&mut bench, &mut input)));
        match result {
            Ok(Some(())) => bench.check(),
            Ok(None) => return,
            // The guest's own end is as good as a refusal.
            Err(thrown) if thrown.is::<Ended>() => return,
            Err(panic) => resume_unwind(panic),
        }
    }
});
