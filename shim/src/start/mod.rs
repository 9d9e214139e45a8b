//! From the PVH start info to a guest that is ready to run.

#![expect(
    unsafe_code,
    reason = "memory and registers are taken over from the boot"
)]

mod handed;
mod later;
mod payload;
mod processor;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Display;

use log::{error, info, warn};
use unmoved_shim::boot::share::{self, LEAST_MAPPED, ShimShare};
use unmoved_shim::boot::{FreeMemory, GuestFrames, HostPages, build};
use unmoved_shim::cpu::{Regs, first};
use unmoved_shim::guest::{Guest, Parts};
use unmoved_shim::host::{Host, Xen};
use unmoved_shim::mem::FramePool;
use unmoved_shim::mm::{Ledger, Mm, Owner, ShimSlots};
use unmoved_shim::options::Options;
use unmoved_shim::points::evtchn::{EventChannels, Peer};
use unmoved_shim::points::identity::Identity;
use unmoved_shim::points::time::Time;
use unmoved_shim::points::{Points, assembled};
use xen_abi::{Mfn, PAGE_SIZE, Port};

use crate::machine::entry::Hosted;
use crate::machine::frames::Direct;
use crate::machine::memory::{Pool, direct};
use crate::machine::{Bare, cpu, globals, heap, paging, tables, xen};

/// Ends the domain because it can not be started, saying why.
fn refuse(what: &str, why: impl Display) -> ! {
    error!("{what}: {why}");
    // The log goes to the host, the console to the guest's owner, who cannot read the log.
    xen::say_on_console(format_args!("unmoved: {what}: {why}\r\n"));
    xen::crash()
}

/// Takes the machine over and builds the guest.  Returns it with the registers of its first vCPU.
pub fn start(start_info: u64) -> (&'static mut Hosted, Regs) {
    if !xen::detect() {
        refuse("hypervisor", "not Xen");
    }
    let mut handed = handed::read_start_info(start_info);
    // First of all: until then the host may run out of memory for what is touched.
    let (of_ram, later) = later::give_back(&mut handed);
    let memory = &mut handed.memory;

    let share = ShimShare::of(handed.end).unwrap_or_else(|error| refuse("memory", error));
    // Low, since only the boot tables are there, which map 4 GiB. Before everything else that
    // allocates, the parser of the options among them.
    let heap_start = take_low(memory, share.heap);
    // SAFETY: the frames are free and now reserved; the boot tables map them.
    unsafe { heap::give(direct(heap_start), share.heap as usize * PAGE_SIZE) };
    let aside = take_low(memory, share.set_aside);
    // SAFETY: as above.
    unsafe { heap::set_aside(direct(aside), share.set_aside as usize * PAGE_SIZE) };
    let options = options(handed.options);
    // Low as well: the tables that map the rest are made from these frames.
    let mut pool = Pool::new(take_low(memory, share.pool), share.pool);
    let m2p_frames = share.m2p;
    // High if possible: nothing touches it or the ledger before the shim's own tables map them.
    let m2p = take(memory, m2p_frames);
    let ledger_start = take(memory, share.ledger);
    let space = paging::ShimSpace::build(&mut pool, handed.end, m2p, m2p_frames);
    // Only now: until the direct map covers them, no frame above 4 GiB may be touched.
    globals::set_frame_limit(handed.end.max(LEAST_MAPPED));
    // All of the last page too: the guest can read that far.
    for mfn in 0..m2p_frames * 512 {
        // SAFETY: the table is reserved, mapped, and large enough.
        unsafe { cpu::m2p_entry(m2p, Mfn(mfn)).write(xen_abi::mmu::INVALID_M2P_ENTRY) };
    }
    let (windows, percpu) = tables::start_vcpu(&mut pool, &space, 0);
    // After the IDT is loaded: a fault from here on is reported.
    let has_xsave = processor::enable_features(percpu);
    let m = Bare::new(windows, percpu, m2p, has_xsave, options.xpti);

    let host = xen::HostXen::connect().unwrap_or_else(|errno| refuse("the host refused", errno));
    let ram: Vec<_> = handed
        .ram
        .ranges()
        .iter()
        .map(|&(start, end)| (Mfn(start), end - start))
        .collect();
    // SAFETY: the frames are free and now reserved; the shim's own tables map them.  Nothing comes
    // between this and the ledger, which needs all of it.
    unsafe { heap::give(direct(ledger_start), share.ledger as usize * PAGE_SIZE) };
    let mut ledger = Ledger::new(Mfn(handed.end), &ram).unwrap_or_else(|e| refuse("ledger", e));
    later.list(&mut ledger);
    let (image, kernel) = payload::unpack(memory, &handed.kernel);

    let identity = processor::identity();
    let (pages, channels) = host_pages(&mut pool, &mut ledger, &identity);
    let mut frames = payload::guest_frames(memory, image, handed.ramdisk.as_ref());
    let planned = share::guests(of_ram, later.frames(), &share);
    // Before the guest is built: `build` puts every frame of the lists behind a page.
    share_out(planned, &mut frames, &mut pool, &mut ledger);
    let cmd_line = handed::physical_string(handed.kernel.cmdline_paddr);
    let set_m2p = |mfn: Mfn, pfn: xen_abi::Pfn| {
        // SAFETY: the table has an entry for every frame below the end of RAM.
        unsafe { cpu::m2p_entry(m2p, mfn).write(pfn.0) };
    };
    let built = build(&Direct, &kernel, frames, &pages, cmd_line, set_m2p)
        .unwrap_or_else(|error| refuse("guest", error));
    // The entries are copied into each L4 table of the guest's, so a slot that the shim filled
    // after this would be missing there.
    let slots = ShimSlots(space.slots());
    let mut mm = Mm {
        frames: &m,
        ledger: &mut ledger,
        slots: &slots,
        tlb: &m,
    };
    // The builder's tables are checked like any others. A mistake in them ends the start, and not
    // the shim's walls.
    let vcpu = first::vcpu(&mut mm, &built, pages.shared_info)
        .unwrap_or_else(|e| refuse("the guest's first page tables", e));

    let mut time = Time::default();
    // The guest counts from its own start: how long the host has been up is not its business.
    time.rebase(host.now_ns(), 0);
    // After the re-basing: the wall clock is that of the guest's time 0.
    time.publish_wall_clock(&Direct, pages.shared_info, host.wall_clock_at_zero_ns());
    let (cpuid, msrs) = processor::policies(&m, &identity);
    info!(
        "guest of {} pages and {} later, {} frames left to the shim, entry {:#x}",
        built.nr_pages,
        later.frames(),
        pool.len(),
        built.entry
    );
    let points = assembled::Parts {
        domid: identity.domid,
        backend: identity.backend,
        pool: Box::new(pool),
        grant_frames: Box::new(xen::GrantFrames),
        store: (pages.store_port, pages.store),
        console: (pages.console_port, pages.console),
        guest_pages: built.nr_pages + later.frames(),
    };
    let points = Points::new(points, &host).unwrap_or_else(|e| refuse("the host's daemons", e));
    let parts = Parts {
        ledger,
        slots,
        shared_info: pages.shared_info,
        identity,
        cpuid,
        msrs,
        channels,
        time,
        vcpus: alloc::vec![vcpu],
        pages: built.nr_pages,
        max_pages: built.nr_pages + later.frames(),
        options,
    };
    let mut guest = Box::new(Guest::new(m, host, points, parts));
    // The only place that waits for the host: a kernel looks for its root disk once.
    if let Err(error) = guest.with_points(Points::start) {
        refuse("devices", error);
    }
    // Only now the host reads that the guest runs.
    guest.report_running();
    guest.with_points(Points::flush);
    // Last but the registers: what the guest reads first is as fresh as it can be.
    guest.publish_time_now(0);
    // Loads the guest's page table. The shim's slots are in it, so this code and its stack stay
    // where they are.
    first::load(&mut guest.m, &guest.vcpus[0], &built);
    (Box::leak(guest), first::registers(&built))
}

fn take(memory: &mut FreeMemory, frames: u64) -> Mfn {
    memory
        .take(frames)
        .unwrap_or_else(|| refuse("memory", "too little for the shim"))
}

fn take_low(memory: &mut FreeMemory, frames: u64) -> Mfn {
    memory
        .take_low(frames)
        .unwrap_or_else(|| refuse("memory", "too little below 4 GiB for the shim"))
}

/// Makes the pages that the guest shares with what it takes for its host, and their ports.
fn host_pages(
    pool: &mut Pool,
    ledger: &mut Ledger,
    identity: &Identity,
) -> (HostPages, EventChannels) {
    // From the pool and not from what is planned for the guest: how much it gets must not depend on
    // these.
    let mut shared = || {
        let frame = pool
            .take()
            .unwrap_or_else(|| refuse("memory", "too little for the shim"));
        if let Err(errno) = ledger.change_owner(frame, Owner::Shim, Owner::Shared) {
            refuse("ledger", errno);
        }
        frame
    };
    let [shared_info, store, console] = core::array::from_fn(|_| shared());
    let mut channels = EventChannels::new(shared_info, identity.domid, identity.backend);
    // The store's port first, then the console's: the numbers are the same in every guest.
    let mut connect = |peer| -> Port {
        channels
            .connect_new(&Direct, peer)
            .unwrap_or_else(|e| refuse("ports", e))
    };
    let pages = HostPages {
        shared_info,
        store,
        store_port: connect(Peer::Store),
        console,
        console_port: connect(Peer::Console),
    };
    (pages, channels)
}

/// Gives the guest the frames that are `planned` for it: the rest goes into the pool, so that the
/// guest has the same memory on every host.
fn share_out(planned: u64, frames: &mut GuestFrames, pool: &mut Pool, ledger: &mut Ledger) {
    let given = frames.image.len() + frames.ramdisk.len();
    // A kernel and a ramdisk larger than the plan leave no free frame; `build` then says what is
    // missing.
    let spare = frames.free.split_off(planned.saturating_sub(given));
    spare.iter().for_each(|frame| pool.give_back(frame));
    for list in [&frames.image, &frames.ramdisk, &frames.free] {
        for frame in list.iter() {
            if let Err(errno) = ledger.give_to_guest(frame) {
                refuse("ledger", errno);
            }
        }
    }
}

/// Reads the shim's own options and says what was not understood.
fn options(line: &[u8]) -> Options {
    let (options, complaints) = Options::parse(line);
    // Before the complaints, which are the first that it lets through or not.
    log::set_max_level(options.log);
    for complaint in complaints {
        warn!("{complaint}");
    }
    options
}
