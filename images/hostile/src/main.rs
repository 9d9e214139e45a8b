//! A PV kernel that attacks whatever runs it: our shim, and real Xen as the reference.
//!
//! It boots, makes its own text read-only, and then runs two parts, chosen on its command line:
//!
//! - *fixed* attacks (`attacks/`): each has a name and a set of answers that are right.  One line
//!   each on the console: `attack NAME: ANSWER ok`, or `WRONG` in place of `ok`.
//! - *random* ones (`random.rs`): `hostile.count=N` hypercalls and privileged instructions out of
//!   seed `hostile.seed=S`, with arguments drawn from what is interesting, and a look at its own
//!   page tables after every `hostile.check=N` of them.
//!
//! Or it only tells what hypercalls answer to arguments at the edge, without a verdict:
//! `hostile.answers=1` (`answers.rs`).  Or it does nothing but spin with events masked, for ever:
//! `hostile.spin=1`.  Or it dies at once, with all its breakpoints armed: `hostile.armed=1`.
//!
//! `leak.rs` looks at every byte that it was given, and `oracle.rs` at its own page tables: none may
//! hold what the guest must not have.  At the end stands one line, `hostile: done, N wrong`, and the
//! kernel powers off.  It never means to die; where it does, that is its runner's or its own fault,
//! and the runner says whose.

#![expect(
    unsafe_code,
    reason = "a kernel that attacks its host has no safe form"
)]
#![no_std]
#![no_main]

mod answers;
mod attacks;
mod call;
mod console;
mod leak;
mod m2p;
mod memory;
mod oracle;
mod random;
mod trap;
mod verdict;

use core::panic::PanicInfo;

use console::say;
use verdict::Verdicts;
use xen_abi::start_info::StartInfo;

/// What the command line asks for.
struct Options {
    seed: u64,
    count: u64,
    fixed: bool,
    check: u64,
    answers: bool,
    spin: bool,
    armed: bool,
}

impl Options {
    fn read(line: &[u8]) -> Self {
        let mut options = Self {
            seed: 1,
            count: 0,
            fixed: true,
            check: 4096,
            answers: false,
            spin: false,
            armed: false,
        };
        let end = line.iter().position(|&byte| byte == 0);
        let line = core::str::from_utf8(&line[..end.unwrap_or(line.len())]).unwrap_or("");
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("hostile.seed", value)) => options.seed = value.parse().unwrap_or(1),
                Some(("hostile.count", value)) => options.count = value.parse().unwrap_or(0),
                Some(("hostile.check", value)) => {
                    options.check = value.parse().unwrap_or(4096).max(1);
                }
                Some(("hostile.fixed", value)) => options.fixed = value != "0",
                Some(("hostile.answers", value)) => options.answers = value != "0",
                Some(("hostile.spin", value)) => options.spin = value != "0",
                Some(("hostile.armed", value)) => options.armed = value != "0",
                _ => {}
            }
        }
        options
    }
}

/// Entered from `entry.s` with the address of the start info.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: *const StartInfo) -> ! {
    // SAFETY: the builder put the structure there, and nothing writes to it.
    let info = unsafe { &*start_info };
    memory::init(info);
    console::init(info);
    trap::init();
    memory::protect();
    let options = Options::read(&info.cmd_line);
    say!("hostile: {} pages, seed {}", info.nr_pages, options.seed);
    if options.spin {
        spin();
    }
    if options.armed {
        say!("hostile: dies armed, {:?}", attacks::watch());
        console::drain();
        trap::shutdown(xen_abi::sched::ShutdownReason::CRASH);
    }
    let mut verdicts = Verdicts::default();
    if options.answers {
        answers::all();
        console::drain();
        trap::shutdown(xen_abi::sched::ShutdownReason::POWEROFF);
    }
    if options.fixed {
        // Xen does not clear what a guest gives back by itself, so only the first of several guests
        // on a host is sure to find its memory clear.
        leak::registers_at_start(&mut verdicts);
        leak::given_at_start(&mut verdicts);
        attacks::all(&mut verdicts);
    }
    leak::visible(&mut verdicts);
    if options.count > 0 {
        random::Random::new(options.seed, options.check, info).run(options.count, &mut verdicts);
    }
    oracle::check(&mut verdicts);
    say!("hostile: done, {} wrong", verdicts.wrong());
    console::drain();
    trap::shutdown(xen_abi::sched::ShutdownReason::POWEROFF)
}

/// Counts for ever like a kernel that is stuck in a loop: events are masked everywhere but in attempts,
/// so it never hears of anything.
fn spin() -> ! {
    let mut turns = 0u64;
    loop {
        for n in 0..TURN {
            core::hint::black_box(n);
        }
        turns += 1;
        say!("hostile: spins, turn {turns}");
    }
}

/// Steps of a turn, which takes about a second in an emulated machine.
const TURN: u64 = 1 << 27;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("hostile: BROKEN {info}");
    console::drain();
    trap::shutdown(xen_abi::sched::ShutdownReason::CRASH)
}
