//! A small guest as the builder leaves it; [`kernel`] has ways to act as its kernel, `driver`
//! its drivers, [`look`] what tests look at.

#[cfg(test)]
pub(crate) mod driver;
mod kernel;
mod look;

use std::ops::Range;
use std::rc::Rc;

use xen_abi::mmu::{INVALID_M2P_ENTRY, Pte, XEN_SLOTS};
use xen_abi::{Mfn, PAGE_SIZE, Port};

use super::dom0::TABLE_FRAMES;
use super::host::{Clock, FakeHost};
use super::machine::FakeMachine;
use super::processor::{intel, policies};
use crate::boot::{FrameList, FrameRun, GuestFrames, HostPages, Kernel, Notes, Segment, build};
use crate::boot::{Layout, Start};
use crate::cpu::{Regs, first};
use crate::guest::{Guest, Parts};
use crate::host::Xen;
use crate::mm::{Ledger, Mm, Owner, ShimSlots};
use crate::options::Options;
use crate::points::evtchn::{EventChannels, Peer};
use crate::points::identity::Identity;
use crate::points::time::{SECOND, Time};
use crate::points::{Points, assembled};
use crate::testing::FakeFrames;
use crate::testing::surroundings::Allowed;

/// The guest that tests run.
pub type TestGuest = Guest<FakeMachine, FakeHost>;

const PAGE: u64 = PAGE_SIZE as u64;
/// Frames of the shim's that the guest's address space leads to, from [`Bench::SHIM`] on.
const M2P_FRAME: Mfn = Mfn(9);
/// Frames of the shim's for rings and tables.
const POOL: Range<u64> = 16..144;
const FIRST_GUEST_FRAME: u64 = POOL.end;

/// A guest with the registers of its vCPU.
pub struct Bench {
    /// The guest.
    pub guest: TestGuest,
    /// What ring 3 would go on with.
    pub regs: Regs,
    /// Where the builder put things.
    pub layout: Layout,
    /// The frames by PFN, whatever becomes of the guest's own list.
    known: Rc<[Mfn]>,
}

impl Bench {
    /// Address of the guest's first page, where its kernel's code is.
    pub const KERNEL: u64 = 0xffff_ffff_8000_0000;
    /// The shared info page.
    pub const SHARED_INFO: Mfn = Mfn(1);
    /// The xenstore ring.
    pub const STORE: Mfn = Mfn(2);
    /// The console ring.
    pub const CONSOLE: Mfn = Mfn(3);
    /// A frame of the shim's.
    pub const SHIM: Mfn = Mfn(8);
    /// All frames are below this one; the last has no memory.
    pub const END: Mfn = Mfn(1328);
    /// The first frame of the guest's own.
    pub const FIRST: Mfn = Mfn(FIRST_GUEST_FRAME);
    /// Pages that the guest has and has mapped nowhere, from this PFN on.
    pub const UNMAPPED: u64 = 1024;
    /// Where [`enter_user`](Self::enter_user) has mapped a page of code, and one of stack behind it.
    pub const USER: u64 = 0x40_0000;
    /// Where handlers are.
    pub const HANDLER: u64 = Self::KERNEL + 0x800;
    /// Uptime of the first host when the guest starts, nanoseconds.
    pub const UPTIME: u64 = 5000 * SECOND;
    /// Its wall clock at that moment.
    pub const WALL: u64 = 1_700_000_000 * SECOND + 123_456_789;

    /// Makes a guest that is about to execute its first instruction.
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    /// The same, with options.
    pub fn with(options: Options) -> Self {
        let mut bench = Self::unconnected(options);
        let begun = bench.guest.host.now_ns();
        let started = bench.guest.with_points(Points::start);
        started.expect("the host is there");
        bench.guest.report_running();
        bench.guest.with_points(Points::flush);
        bench.guest.host_events();
        let host = &mut bench.guest.host;
        assert_eq!(host.now_ns(), begun, "the host answers at once");
        host.waits = 0;
        host.dom0.reports.clear();
        bench
    }

    /// A guest that is not connected to its host yet.
    pub fn unconnected(options: Options) -> Self {
        let Built {
            frames,
            m2p,
            start,
            known,
        } = built();
        let frames = Rc::new(frames);
        let clock = Clock::new(77_000_000_000);
        let mut ledger = Ledger::new(Self::END, &[(Mfn(0), Self::END.0 - 1)]).expect("small");
        for frame in FIRST_GUEST_FRAME..Self::END.0 - 1 {
            ledger.give_to_guest(Mfn(frame)).expect("the shim's");
        }
        for shared in [Self::SHARED_INFO, Self::STORE, Self::CONSOLE] {
            let lent = ledger.change_owner(shared, Owner::Shim, Owner::Shared);
            lent.expect("the shim's");
        }
        let m = FakeMachine::new(frames.clone(), clock.clone(), m2p, &ledger);
        let host = FakeHost::new(clock, frames, Self::UPTIME, Self::WALL);
        let mut slots = [Pte::new(Self::SHIM, Pte::PRESENT | Pte::RW).0; XEN_SLOTS];
        slots[0] = Pte::new(M2P_FRAME, Pte::PRESENT | Pte::USER).0;
        let slots = ShimSlots(slots);
        let mut mm = Mm {
            frames: &m,
            ledger: &mut ledger,
            slots: &slots,
            tlb: &m,
        };
        let vcpu = first::vcpu(&mut mm, &start, Self::SHARED_INFO).expect("good tables");
        let identity = Identity {
            domid: Identity::GUEST,
            backend: Identity::BACKEND,
            uuid: *b"0123456789abcdef",
            version: 4 << 16 | 17,
            extraversion: *b".5-test\0\0\0\0\0\0\0\0\0",
        };
        let mut channels = EventChannels::new(Self::SHARED_INFO, identity.domid, identity.backend);
        for peer in [Peer::Store, Peer::Console] {
            channels.connect_new(&m, peer).expect("there is room");
        }
        let mut time = Time::default();
        time.rebase(host.now_ns(), 0);
        time.publish_wall_clock(&m, Self::SHARED_INFO, Self::WALL - Self::UPTIME);
        let (cpuid, msrs) = policies(intel);
        let parts = Parts {
            ledger,
            slots,
            shared_info: Self::SHARED_INFO,
            identity,
            cpuid,
            msrs,
            channels,
            time,
            vcpus: vec![vcpu],
            pages: start.nr_pages,
            max_pages: start.nr_pages,
            options,
        };
        let points = assembled::Parts {
            domid: parts.identity.domid,
            backend: parts.identity.backend,
            pool: Box::new(POOL.map(Mfn).collect::<Vec<_>>()),
            grant_frames: Box::new(Allowed(TABLE_FRAMES)),
            store: (Port(1), Self::STORE),
            console: (Port(2), Self::CONSOLE),
            guest_pages: parts.max_pages,
        };
        let points = Points::new(points, &host).expect("the host has rings");
        let mut guest = Guest::new(m, host, points, parts);
        guest.publish_time_now(0);
        first::load(&mut guest.m, &guest.vcpus[0], &start);
        let regs = first::registers(&start);
        Self {
            guest,
            regs,
            layout: start.layout,
            known,
        }
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// What building the guest leaves.
#[derive(Clone)]
struct Built {
    frames: FakeFrames,
    m2p: Vec<u64>,
    start: Start,
    known: Rc<[Mfn]>,
}

/// Builds the guest; it is the same each time, so it is built once and copied.
fn built() -> Built {
    thread_local! {
        static BUILT: Built = build_guest();
    }
    BUILT.with(Clone::clone)
}

fn build_guest() -> Built {
    let frames = FakeFrames::new(Bench::END.0 - 1);
    let segment = Segment {
        offset: 0,
        target: 0,
        file_size: PAGE,
        mem_size: PAGE,
    };
    let kernel = Kernel {
        virt_base: Bench::KERNEL,
        entry: Bench::KERNEL,
        segments: vec![segment],
        end: PAGE,
        image_len: PAGE,
        notes: Notes::default(),
    };
    let run = |first, count| {
        let mut list = FrameList::new();
        list.push_run(FrameRun {
            first: Mfn(first),
            count,
        });
        list
    };
    let memory = GuestFrames {
        image: run(FIRST_GUEST_FRAME, 1),
        ramdisk: FrameList::new(),
        ramdisk_len: 0,
        free: run(FIRST_GUEST_FRAME + 1, Bench::END.0 - FIRST_GUEST_FRAME - 2),
    };
    let pages = HostPages {
        shared_info: Bench::SHARED_INFO,
        store: Bench::STORE,
        store_port: Port(1),
        console: Bench::CONSOLE,
        console_port: Port(2),
    };
    let mut m2p = vec![INVALID_M2P_ENTRY; Bench::END.0 as usize];
    let start = build(&frames, &kernel, memory, &pages, b"", |mfn, pfn| {
        m2p[mfn.0 as usize] = pfn.0;
    });
    let start = start.expect("it fits");
    assert_eq!(start.layout.mapped, Bench::UNMAPPED);
    let mut known = vec![Mfn(0); start.nr_pages as usize];
    for (mfn, &pfn) in m2p.iter().enumerate() {
        if let Some(frame) = known.get_mut(pfn as usize) {
            *frame = Mfn(mfn as u64);
        }
    }
    Built {
        frames,
        m2p,
        start,
        known: known.into(),
    }
}
