//! From the PVH start info to a guest that is ready to run.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Display;

use log::{error, info, warn};
use unmoved_shim::boot::payload::Payload;
use unmoved_shim::boot::{FrameList, FrameRun, GuestFrames, HostPages, Kernel, build};
use unmoved_shim::cpu::{InfoPage, Machine, Regs, Vcpu};
use unmoved_shim::emulate::cpuid::{FrozenCpuid, HypervisorLeaves};
use unmoved_shim::emulate::msr::MsrPolicy;
use unmoved_shim::guest::{Guest, Parts};
use unmoved_shim::host::{Host, Xen};
use unmoved_shim::mem::{FramePool, Frames};
use unmoved_shim::mm::{Ledger, Mm, Owner, ShimSlots};
use unmoved_shim::options::Options;
use unmoved_shim::points::all::{self as points, AllPoints};
use unmoved_shim::points::evtchn::{EventChannels, Peer};
use unmoved_shim::points::identity::Identity;
use unmoved_shim::points::time::Time;
use xen_abi::pvh::{HvmStartInfo, MemmapEntry, ModlistEntry, e820};
use xen_abi::shared_info::vcpu_info;
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, rflags};
use xen_abi::{Mfn, PAGE_SIZE};
use zerocopy::FromBytes;

use crate::machine::entry::Hosted;
use crate::machine::frames::Direct;
use crate::machine::memory::{FreeMemory, Pool, direct};
use crate::machine::{Bare, cpu, globals, heap, instructions, layout, paging, tables, xen};

/// Frames that the shim keeps for rings, tables and stacks.
const POOL_FRAMES: u64 = 320;
/// Frames that are neither the guest's nor among those counted above: the image, the hole below 1
/// MiB, what the toolstack keeps for its own use, and some more, so that the guest has the same
/// memory whatever release of the toolstack starts it.
const OTHER_FRAMES: u64 = 320;
/// Memory is configured in MiB.
const FRAMES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;
/// What the guest is told of the highest machine address, whatever the host has: a constant, and
/// small enough for version 1 of the grant table.
const MACHINE_ADDRESS_WIDTH: u8 = 40;
/// Bytes of heap besides what scales with memory.
const HEAP_BYTES: u64 = 2 << 20;
/// Bytes of the heap for unpacking beyond a quarter more than was asked for.
const HEAP_SLACK: usize = 1 << 20;

const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// Ends the domain because it can not be started, saying why.
fn refuse(what: &str, why: impl Display) -> ! {
    error!("{what}: {why}");
    xen::say_on_console(format_args!("unmoved: {what}: {why}\r\n"));
    xen::crash()
}

/// Copies a structure from physical memory below 4 GiB.
fn physical<T: FromBytes>(address: u64) -> T {
    if address + size_of::<T>() as u64 > 1 << 32 {
        refuse("start info", "above 4 GiB");
    }
    // SAFETY: the boot tables map the low 4 GiB, and any bytes make a `T`.
    unsafe { ((layout::DIRECT + address) as *const T).read_unaligned() }
}

/// Borrows bytes of physical memory below 4 GiB, which nobody changes while the shim starts.
fn physical_bytes(address: u64, len: u64) -> &'static [u8] {
    if address.checked_add(len).is_none_or(|end| end > 1 << 32) {
        refuse("start info", "above 4 GiB");
    }
    // SAFETY: mapped, and reserved against reuse until the guest is built.
    unsafe { core::slice::from_raw_parts((layout::DIRECT + address) as *const u8, len as usize) }
}

/// Borrows a NUL-terminated string of the start info.
fn physical_string(address: u64) -> &'static [u8] {
    const LONGEST: u64 = 4096;
    if address == 0 {
        return &[];
    }
    let bytes = physical_bytes(address, LONGEST);
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}

/// What the toolstack handed over.
struct Handed {
    ram: FreeMemory,
    memory: FreeMemory,
    end: u64,
    kernel: ModlistEntry,
    ramdisk: Option<ModlistEntry>,
    options: &'static [u8],
}

fn frames_of(address: u64, len: u64) -> (u64, u64) {
    (
        Mfn::of(address).0,
        Mfn::of(address + len + PAGE_SIZE as u64 - 1).0,
    )
}

fn read_start_info(address: u64) -> Handed {
    let info: HvmStartInfo = physical(address);
    if info.magic != xen_abi::pvh::MAGIC || info.version < 1 {
        refuse("start info", "not a PVH start info of version 1");
    }
    let mut memory = FreeMemory::default();
    let mut end = 0;
    for index in 0..u64::from(info.memmap_entries) {
        let entry: MemmapEntry =
            physical(info.memmap_paddr + index * size_of::<MemmapEntry>() as u64);
        if entry.kind == e820::RAM {
            let last = Mfn::of(entry.addr + entry.size).0;
            memory.add(Mfn::of(entry.addr + PAGE_SIZE as u64 - 1).0, last);
            end = end.max(last);
        }
    }
    let ram = memory;
    let modules: Vec2 = [0, 1].map(|index| {
        (index < u64::from(info.nr_modules)).then(|| {
            physical::<ModlistEntry>(info.modlist_paddr + index * size_of::<ModlistEntry>() as u64)
        })
    });
    let Some(kernel) = modules[0] else {
        refuse("start info", "no kernel: is `kernel=` set?")
    };
    // Frame 0 is left alone, so that 0 can mean none.
    memory.reserve(0, 1);
    memory.reserve(layout::IMAGE_PHYSICAL >> 12, paging::image_end().0);
    let start_info_page = Mfn::of(address).0;
    // Start info, module list, map and command lines follow each other.
    memory.reserve(start_info_page, start_info_page + 4);
    for module in modules.iter().flatten() {
        let (from, to) = frames_of(module.paddr, module.size);
        memory.reserve(from, to);
    }
    Handed {
        ram,
        memory,
        end,
        kernel,
        ramdisk: modules[1].filter(|module| module.size > 0),
        options: physical_string(info.cmdline_paddr),
    }
}

type Vec2 = [Option<ModlistEntry>; 2];

/// Takes the machine over and builds the guest.  Returns it with the registers of its first vCPU.
pub fn start(start_info: u64) -> (&'static mut Hosted, Regs) {
    if !xen::detect() {
        refuse("hypervisor", "not Xen");
    }
    let mut handed = read_start_info(start_info);
    let memory = &mut handed.memory;

    let heap_frames = (HEAP_BYTES + handed.end * 8).div_ceil(PAGE_SIZE as u64);
    let m2p_frames = handed.end.div_ceil(512);
    let take = |memory: &mut FreeMemory, frames: u64| {
        memory
            .take(frames, 1)
            .unwrap_or_else(|| refuse("memory", "too little for the shim"))
    };
    let heap_start = take(memory, heap_frames);
    // SAFETY: the frames are free and now reserved; the boot tables map them.
    unsafe { heap::give(direct(heap_start), heap_frames as usize * PAGE_SIZE) };
    let options = options(handed.options);
    let mut pool = Pool::new(take(memory, POOL_FRAMES), POOL_FRAMES);
    let m2p = take(memory, m2p_frames);
    let space = paging::ShimSpace::build(&mut pool, memory, handed.end, m2p, m2p_frames);
    globals::set_frame_limit(handed.end.max(1 << 20));
    for mfn in 0..m2p_frames * 512 {
        // SAFETY: the table is reserved, mapped, and large enough.
        unsafe { cpu::m2p_entry(m2p, Mfn(mfn)).write(xen_abi::mmu::INVALID_M2P_ENTRY) };
    }
    let (windows, percpu) = tables::start_vcpu(&mut pool, &space, 0);
    let has_xsave = enable_features(percpu);
    let m = Bare::new(windows, percpu, m2p, has_xsave);

    let host = xen::HostXen::connect().unwrap_or_else(|errno| refuse("the host refused", errno));
    let ram: Vec<_> = handed
        .ram
        .ranges()
        .iter()
        .map(|&(start, end)| (Mfn(start), end - start))
        .collect();
    let mut ledger = Ledger::new(Mfn(handed.end), &ram).unwrap_or_else(|e| refuse("ledger", e));
    let (image, kernel) = unpack(memory, &handed.kernel);

    let identity = identity();
    let mut shared = || {
        let frame = pool
            .take()
            .unwrap_or_else(|| refuse("memory", "too little for the shim"));
        (
            frame,
            ledger.change_owner(frame, Owner::Shim, Owner::Shared),
        )
    };
    let (shared_info, _) = shared();
    let (store, _) = shared();
    let (console, _) = shared();
    let frames = Direct;
    let mut channels = EventChannels::new(shared_info, identity.domid, identity.backend);
    let mut connect = |peer| {
        channels
            .connect_new(&frames, peer)
            .unwrap_or_else(|e| refuse("ports", e))
    };
    let store_port = connect(Peer::Store);
    let console_port = connect(Peer::Console);

    let pages = HostPages {
        shared_info,
        store,
        store_port,
        console,
        console_port,
    };
    let mut guest_frames = guest_frames(memory, image, handed.ramdisk.as_ref());
    let of_ram: u64 = ram.iter().map(|&(_, count)| count).sum();
    let own = heap_frames + POOL_FRAMES + m2p_frames + OTHER_FRAMES;
    let planned = of_ram.next_multiple_of(FRAMES_PER_MIB).saturating_sub(own);
    let given = guest_frames.image.len() + guest_frames.ramdisk.len();
    let spare = guest_frames.free.split_off(planned.saturating_sub(given));
    spare.iter().for_each(|frame| pool.give_back(frame));
    let cmd_line = physical_string(handed.kernel.cmdline_paddr);
    for list in [
        &guest_frames.image,
        &guest_frames.ramdisk,
        &guest_frames.free,
    ] {
        for frame in list.iter() {
            if let Err(errno) = ledger.give_to_guest(frame) {
                refuse("ledger", errno);
            }
        }
    }
    let set_m2p = |mfn: Mfn, pfn: xen_abi::Pfn| {
        // SAFETY: the table has an entry for every frame below the end of RAM.
        unsafe { cpu::m2p_entry(m2p, mfn).write(pfn.0) };
    };
    let built = build(&frames, &kernel, guest_frames, &pages, cmd_line, set_m2p)
        .unwrap_or_else(|error| refuse("guest", error));

    let slots = ShimSlots(space.slots());
    let mut vcpu = Vcpu::new(
        0,
        InfoPage {
            frame: shared_info,
            offset: 0,
            is_registered: false,
        },
    );
    let mut mm = Mm {
        frames: &m,
        ledger: &mut ledger,
        slots: &slots,
        tlb: &m,
    };
    match mm.enter(built.l4, None) {
        Ok(spaces) => vcpu.spaces = Some(spaces),
        Err(errno) => refuse("the guest's first page tables", errno),
    }
    // As Xen's builder leaves it: the first table is pinned, and the kernel unpins it.
    if let Err(errno) = mm.pin(xen_abi::mmu::Level::L4, built.l4) {
        refuse("the guest's first page tables", errno);
    }
    vcpu.is_initialised = true;
    vcpu.is_up = true;
    frames.store8(shared_info, vcpu_info::UPCALL_MASK, 1);

    let mut time = Time::default();
    let now = host.now_ns();
    // The guest counts from its own start: how long the host has been up is not its business.
    time.rebase(now, 0);
    time.publish_wall_clock(&frames, shared_info, host.wall_clock_ns());
    let (cpuid, msrs) = policies(&m, &identity);
    info!(
        "guest of {} pages, {} frames left to the shim, entry {:#x}",
        built.nr_pages,
        pool.len(),
        built.entry
    );
    let parts = Parts {
        ledger,
        slots,
        shared_info,
        identity,
        cpuid,
        msrs,
        channels,
        time,
        vcpus: alloc::vec![vcpu],
        pages: built.nr_pages,
        max_pages: built.nr_pages,
        options,
    };
    let points = points::Parts {
        domid: parts.identity.domid,
        backend: parts.identity.backend,
        pool: Box::new(pool),
        grant_frames: Box::new(xen::GrantFrames),
        store: (store_port, store),
        console: (console_port, console),
        guest_pages: built.nr_pages,
    };
    let points = AllPoints::new(points, &host).unwrap_or_else(|e| refuse("the host's daemons", e));
    let mut guest = Box::new(Guest::new(m, host, points, parts));
    if let Err(error) = guest.outside(AllPoints::start) {
        refuse("devices", error);
    }
    guest.announce();
    guest.publish_time_now(0);
    guest.m.set_guest_cr4(0);
    guest.m.load_page_table(built.l4);
    let regs = Regs {
        rip: built.entry,
        rsp: built.stack,
        rsi: built.start_info,
        cs: FLAT_RING3_CS64.into(),
        ss: FLAT_RING3_DS.into(),
        rflags: rflags::IF | rflags::RESERVED,
        ..Regs::default()
    };
    (Box::leak(guest), regs)
}

/// Reads the shim's own options and says what was not understood.
fn options(line: &[u8]) -> Options {
    let (options, complaints) = Options::parse(line);
    log::set_max_level(options.log);
    for complaint in complaints {
        warn!("{complaint}");
    }
    options
}

/// Turns on what the CPU has and the shim uses; returns whether there is XSAVE.
fn enable_features(percpu: *mut tables::PerCpu) -> bool {
    let leaf7 = instructions::cpuid(7, 0)[1];
    let has_xsave = instructions::cpuid(1, 0)[2] & 1 << 26 != 0;
    if leaf7 & 1 == 0 {
        refuse("CPU", "no FSGSBASE");
    }
    let mut cr4 = instructions::cr4() | CR4_FSGSBASE;
    if has_xsave {
        cr4 |= CR4_OSXSAVE;
    }
    if leaf7 & 1 << 7 != 0 {
        cr4 |= CR4_SMEP;
    }
    if leaf7 & 1 << 20 != 0 {
        cr4 |= CR4_SMAP;
        globals::set_smap(true);
        // SAFETY: the block is this vCPU's, which is not in use yet.
        unsafe { (*percpu).entry_flags |= tables::ENTRY_SMAP };
    }
    // SAFETY: each bit was checked in CPUID, and no page of the shim's is a user page.
    unsafe { instructions::set_cr4(cr4) };
    has_xsave
}

fn identity() -> Identity {
    Identity {
        domid: Identity::GUEST,
        backend: Identity::BACKEND,
        uuid: xen::uuid(),
        version: Identity::VERSION,
        extraversion: Identity::EXTRAVERSION,
    }
}

fn policies(m: &Bare, identity: &Identity) -> (FrozenCpuid, MsrPolicy) {
    use instructions::msr;
    let leaves = HypervisorLeaves {
        version: ((identity.version >> 16) as u16, identity.version as u16),
        machine_address_width: MACHINE_ADDRESS_WIDTH,
    };
    // Whether a host emulates the TSC, it decides for itself each time that it starts.  One that does
    // makes RDTSCP as slow as RDTSC, and there are emulated machines whose SVM reports the former as
    // the latter, which the host can not handle.  So no guest is told of it.
    const RDTSCP: u32 = 1 << 27;
    let cpuid = FrozenCpuid::freeze(
        |leaf, subleaf| {
            let mut regs = instructions::cpuid(leaf, subleaf);
            if leaf == 0x8000_0001 {
                regs[3] &= !RDTSCP;
            }
            regs
        },
        &leaves,
    );
    let can_fault = m
        .read_msr(msr::PLATFORM_INFO)
        .is_some_and(|info| info & 1 << 31 != 0);
    let msrs = MsrPolicy::freeze(|index| m.read_msr(index), &cpuid, can_fault);
    if can_fault {
        // SAFETY: the register exists; ring 0 is not concerned by the bit.
        unsafe { instructions::write_msr(msr::MISC_FEATURES_ENABLES, 1) };
    } else {
        warn!("no CPUID faulting: programs of the guest see the host's CPUID");
    }
    (cpuid, msrs)
}

/// Returns the frames of the kernel's ELF image, and the kernel.
fn unpack(memory: &mut FreeMemory, module: &ModlistEntry) -> (FrameList, Kernel) {
    let file = physical_bytes(module.paddr, module.size);
    let payload = Payload::recognise(file).unwrap_or_else(|error| refuse("kernel", error));
    let (image, first, frames): (&[u8], u64, u64) = match payload {
        Payload::Elf(elf) => {
            let offset = elf.as_ptr() as u64 - layout::DIRECT;
            if offset.is_multiple_of(PAGE_SIZE as u64) {
                let (from, to) = frames_of(offset, elf.len() as u64);
                (elf, from, to - from)
            } else {
                let (to, frames) = destination(memory, elf.len());
                to[..elf.len()].copy_from_slice(elf);
                (
                    &to[..elf.len()],
                    Mfn::of(to.as_ptr() as u64 - layout::DIRECT).0,
                    frames,
                )
            }
        }
        Payload::Packed(packed) => {
            let (to, frames) = destination(memory, packed.unpacked_len());
            let first = Mfn::of(to.as_ptr() as u64 - layout::DIRECT).0;
            let (from, end) = memory.longest();
            // The need is an estimate.
            let wanted = (packed.heap_needed() / 4 * 5 + HEAP_SLACK) & !(PAGE_SIZE - 1);
            let bytes = ((end.saturating_sub(from) << 12) as usize).min(wanted);
            if bytes < packed.heap_needed() {
                refuse(
                    "kernel",
                    "too little memory to unpack it; an unpacked one needs less",
                );
            }
            // SAFETY: the longest free range is mapped and nobody's; nothing allocated in there is
            // kept.
            let result = unsafe {
                heap::with_boot_heap(direct(Mfn(from)), bytes, || {
                    packed.unpack(to).map(|image| &*image)
                })
            };
            // SAFETY: as above; the guest gets it clear.
            unsafe { direct(Mfn(from)).write_bytes(0, bytes) };
            (
                result.unwrap_or_else(|error| refuse("kernel", error)),
                first,
                frames,
            )
        }
    };
    let kernel = Kernel::parse(image).unwrap_or_else(|error| refuse("kernel", error));
    // The packed file is not needed any more, nor what an unpacked image does not cover.
    let (from, to) = frames_of(module.paddr, module.size);
    for frame in from..to {
        if !(first..first + frames).contains(&frame) {
            // SAFETY: the file was read for the last time, and the image lies elsewhere.
            unsafe { direct(Mfn(frame)).write_bytes(0, PAGE_SIZE) };
            memory.add_frame(frame);
        }
    }
    let mut list = FrameList::new();
    list.push_run(FrameRun {
        first: Mfn(first),
        count: frames,
    });
    (list, kernel)
}

fn destination(memory: &mut FreeMemory, len: usize) -> (&'static mut [u8], u64) {
    let frames = (len as u64).div_ceil(PAGE_SIZE as u64);
    let first = memory
        .take(frames, 1)
        .unwrap_or_else(|| refuse("kernel", "too little memory to unpack it"));
    // SAFETY: the frames are free, now reserved, and mapped.
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(direct(first), frames as usize * PAGE_SIZE) };
    (bytes, frames)
}

fn guest_frames(
    memory: &FreeMemory,
    image: FrameList,
    ramdisk: Option<&ModlistEntry>,
) -> GuestFrames {
    let mut free = FrameList::new();
    for &(from, to) in memory.ranges() {
        free.push_run(FrameRun {
            first: Mfn(from),
            count: to - from,
        });
    }
    let mut list = FrameList::new();
    let mut ramdisk_len = 0;
    if let Some(module) = ramdisk {
        let (from, to) = frames_of(module.paddr, module.size);
        list.push_run(FrameRun {
            first: Mfn(from),
            count: to - from,
        });
        ramdisk_len = module.size;
    }
    GuestFrames {
        image,
        ramdisk: list,
        ramdisk_len,
        free,
    }
}
