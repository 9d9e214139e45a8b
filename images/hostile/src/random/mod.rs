//! Random attacks: hypercalls, privileged instructions and native page-table stores, with arguments
//! drawn from what is interesting.
//!
//! The kernel wants to live through all of them.  So what would merely kill itself is left out:
//! changing the mappings that it runs on, halting for good, closing its console.  Everything else of
//! its own is fair game: [`repair`](trap::repair) sets it right again.
//!
//! After each: registers that a hypercall must not touch are compared, and no word that comes back
//! may lie in the hypervisor's part of the address space.  The kernel's own addresses in there all
//! end in [`MARK`], so that others show.

mod calls;
mod instructions;
mod make;
mod stores;
mod words;

use xen_abi::Mfn;
use xen_abi::start_info::StartInfo;

use crate::attacks::first_foreign;
use crate::console::say;
use crate::memory;
use crate::oracle;
use crate::trap;
use crate::verdict::Verdicts;

/// Low bits of every address in the hypervisor's range that this kernel makes up.
const MARK: u64 = 0x5a5;
/// How many attacks are told of when something has gone wrong.
const LAST: usize = 8;
/// Words of scratch memory that are looked at after a call.
const LOOKED: usize = 40;
/// Attacks between two lines.
const REPORT: u64 = 10_000;
/// Frames at the end of memory that go out of and into the balloon.
const BALLOON: u64 = 128;

/// The state of the random attacks.
pub struct Random {
    state: u64,
    store_ring: u64,
    store_port: u32,
    foreign: u64,
    calls: u64,
    refused: u64,
    traps: u64,
    /// Attacks between two looks at the page tables.
    check: u64,
    /// The last attacks: kind and what they were about.
    last: [(&'static str, [u64; 8]); LAST],
    made: usize,
}

/// What an attack is.
#[derive(Clone, Copy)]
struct Call {
    number: u64,
    args: [u64; 5],
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64, check: u64, info: &StartInfo) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            store_ring: memory::va_of(Mfn(info.store_mfn)),
            store_port: info.store_evtchn,
            foreign: first_foreign(0x200),
            calls: 0,
            refused: 0,
            traps: 0,
            check,
            last: [("", [0; 8]); LAST],
            made: 0,
        }
    }

    /// Runs `count` attacks.
    pub fn run(&mut self, count: u64, verdicts: &mut Verdicts) {
        trap::repair();
        let mut wrong = verdicts.wrong();
        for n in 0..count {
            self.one(verdicts);
            if verdicts.wrong() != wrong {
                wrong = verdicts.wrong();
                self.tell(n);
            }
            if n % 16 == 0 {
                trap::repair();
            }
            if n % self.check == 0 {
                trap::arm();
                oracle::check(verdicts);
                self.balloon(verdicts);
            }
            if (n + 1) % REPORT == 0 || n + 1 == count {
                say!(
                    "hostile: {} of {count}, {} calls, {} refused, {} traps, {} events, {} wrong",
                    n + 1,
                    self.calls,
                    self.refused,
                    self.traps,
                    trap::events(),
                    verdicts.wrong()
                );
            }
        }
        trap::repair();
        memory::set_gdt();
    }

    /// Tells what came before something that is wrong.
    fn tell(&self, n: u64) {
        say!("hostile: at {n}; before that, the latest last:");
        for back in (0..LAST.min(self.made)).rev() {
            let (kind, words) = self.last[(self.made - 1 - back) % LAST];
            say!("hostile:   {kind} {words:x?}");
        }
    }

    fn remember(&mut self, kind: &'static str, words: [u64; 8]) {
        self.last[self.made % LAST] = (kind, words);
        self.made += 1;
    }

    fn one(&mut self, verdicts: &mut Verdicts) {
        match self.below(16) {
            0..=8 => {
                let call = self.call();
                self.make(call, verdicts);
            }
            9 => self.batch(verdicts),
            10..=12 => self.instruction(verdicts),
            13 => self.native_store(verdicts),
            14 => self.return_somewhere(),
            _ => self.scribble(),
        }
    }
}
