//! A small guest as the builder leaves it, and short ways to act as its kernel.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use xen_abi::mmu::{INVALID_M2P_ENTRY, Level, MmuExtOp, Pte, XEN_SLOTS, ext};
use xen_abi::sched::ShutdownReason;
use xen_abi::shared_info::vcpu_info;
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, IretContext, TrapInfo, rflags};
use xen_abi::{DomId, Errno, GuestVa, Mfn, PAGE_SIZE, Port, hypercall as nr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::census::Census;
use super::host::{Clock, Ended, FakeHost};
use super::machine::FakeMachine;
use super::points::FakePoints;
use crate::boot::{FrameList, FrameRun, GuestFrames, HostPages, Kernel, Notes, Segment, build};
use crate::boot::{Layout, Start};
use crate::cpu::{InfoPage, Machine, Regs, Vcpu};
use crate::emulate::fake::FakeVcpu;
use crate::guest::{Guest, Parts};
use crate::host::Xen;
use crate::mem::{FakeFrames, Frames, GuestMemory};
use crate::mm::{FrameUse, Ledger, Mm, Owner, ShimSlots};
use crate::options::Options;
use crate::points::evtchn::{EventChannels, Peer};
use crate::points::identity::Identity;
use crate::points::time::{SECOND, Time};

/// The guest that tests run.
pub type TestGuest = Guest<FakeMachine, FakeHost, FakePoints>;

const PAGE: u64 = PAGE_SIZE as u64;
/// Frames of the shim's that the guest's address space leads to, from [`Bench::SHIM`] on.
const M2P_FRAME: Mfn = Mfn(9);
const FIRST_GUEST_FRAME: u64 = 16;

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
    pub const END: Mfn = Mfn(1200);
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
        let Built {
            frames,
            m2p,
            start,
            known,
        } = built();
        let frames = Rc::new(frames);
        let clock = Clock::new(77_000_000_000);
        let m = FakeMachine::new(frames.clone(), clock.clone(), m2p);
        let host = FakeHost::new(clock, frames, Self::UPTIME, Self::WALL);
        let mut ledger = Ledger::new(Self::END, &[(Mfn(0), Self::END.0 - 1)]).expect("small");
        for frame in FIRST_GUEST_FRAME..Self::END.0 - 1 {
            ledger.give_to_guest(Mfn(frame)).expect("the shim's");
        }
        for shared in [Self::SHARED_INFO, Self::STORE, Self::CONSOLE] {
            let lent = ledger.change_owner(shared, Owner::Shim, Owner::Shared);
            lent.expect("the shim's");
        }
        let mut slots = [Pte::new(Self::SHIM, Pte::PRESENT | Pte::RW).0; XEN_SLOTS];
        slots[0] = Pte::new(M2P_FRAME, Pte::PRESENT | Pte::USER).0;
        let slots = ShimSlots(slots);
        let info = InfoPage {
            frame: Self::SHARED_INFO,
            offset: 0,
            is_registered: false,
        };
        let mut vcpu = Vcpu::new(0, info);
        let mut mm = Mm {
            frames: &m,
            ledger: &mut ledger,
            slots: &slots,
            tlb: &m,
        };
        vcpu.spaces = Some(mm.enter(start.l4, None).expect("good tables"));
        let _ = mm.pin(Level::L4, start.l4).expect("good tables");
        vcpu.is_initialised = true;
        vcpu.is_up = true;
        m.store8(Self::SHARED_INFO, vcpu_info::UPCALL_MASK, 1);
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
        let cpu = FakeVcpu::new(crate::emulate::fake::intel);
        let parts = Parts {
            ledger,
            slots,
            shared_info: Self::SHARED_INFO,
            identity,
            cpuid: cpu.cpuid,
            msrs: cpu.policy,
            channels,
            time,
            vcpus: vec![vcpu],
            pages: start.nr_pages,
            max_pages: start.nr_pages,
            options,
        };
        let mut guest = Guest::new(m, host, FakePoints::default(), parts);
        guest.publish_time_now(0);
        guest.m.load_page_table(start.l4);
        let regs = Regs {
            rip: start.entry,
            rsp: start.stack,
            rsi: start.start_info,
            cs: FLAT_RING3_CS64.into(),
            ss: FLAT_RING3_DS.into(),
            rflags: rflags::IF | rflags::RESERVED,
            ..Regs::default()
        };
        Self {
            guest,
            regs,
            layout: start.layout,
            known,
        }
    }

    /// Returns the address of one of the guest's free pages, which are zero and writable.
    pub fn page(&self, index: u64) -> u64 {
        assert!(index < 120, "there are no more");
        self.layout.va(self.layout.stack + 1 + index)
    }

    /// Returns the frame behind a mapped address.
    pub fn frame(&mut self, va: u64) -> Mfn {
        self.entry(va).frame()
    }

    /// Returns the L1 entry of an address under the kernel's page table.
    pub fn entry(&mut self, va: u64) -> Pte {
        let spaces = self.guest.vcpus[0].spaces.as_ref();
        let root = spaces.expect("it has tables").kernel();
        let mapping = self.mm().walk(root, GuestVa(va));
        mapping.expect("there is an L1 table").entry
    }

    /// Returns the frame of PFN `pfn`, as the guest's P2M list has it.
    pub fn mfn(&self, pfn: u64) -> Mfn {
        Mfn(self.get(self.layout.p2m_va + pfn * 8))
    }

    /// Returns the frame that was behind [`page`](Self::page) at first.
    pub fn mfn_of_page(&self, index: u64) -> Mfn {
        self.known[(self.layout.stack + 1 + index) as usize]
    }

    /// Returns the frames of the guest's first tables, the top level first.
    pub fn tables(&self) -> &[Mfn] {
        &self.known[self.layout.tables.start as usize..self.layout.tables.end as usize]
    }

    /// Returns one of the frames that were mapped nowhere at first.
    pub fn spare(&self, index: u64) -> Mfn {
        self.known[(Self::UNMAPPED + index) as usize]
    }

    /// Returns a view of the guest's memory.
    pub fn mm(&mut self) -> Mm<'_, FakeMachine> {
        Mm {
            frames: &self.guest.m,
            ledger: &mut self.guest.ledger,
            slots: &self.guest.slots,
            tlb: &self.guest.m,
        }
    }

    /// Reads as the guest does in its current mode.
    pub fn get<T: FromBytes + IntoBytes>(&self, va: u64) -> T {
        let mut value = T::new_zeroed();
        let read = self.guest.m.read_guest(GuestVa(va), value.as_mut_bytes());
        read.expect("mapped");
        value
    }

    /// Writes as the guest does in its current mode.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, va: u64, value: &T) {
        let written = self.guest.m.write_guest(GuestVa(va), value.as_bytes());
        written.expect("mapped writable");
    }

    /// Writes a structure where hypercalls may find it, and returns the address.
    pub fn arg<T: IntoBytes + Immutable + KnownLayout>(&self, value: &T) -> u64 {
        let va = self.page(0);
        self.put(va, value);
        va
    }

    /// Makes a hypercall, and returns what is in `rax` afterwards.
    pub fn call(&mut self, number: u64, args: &[u64]) -> Result<u64, Errno> {
        self.syscall(number, args);
        Errno::from_rax(self.regs.rax)
    }

    /// Executes SYSCALL in the current mode.  Returns whether the way back was by SYSRET.
    pub fn syscall(&mut self, number: u64, args: &[u64]) -> bool {
        let regs = &mut self.regs;
        regs.rax = number;
        let mut registers = [
            &mut regs.rdi,
            &mut regs.rsi,
            &mut regs.rdx,
            &mut regs.r10,
            &mut regs.r8,
        ];
        for (register, &value) in registers.iter_mut().zip(args) {
            **register = value;
        }
        regs.rip = regs.rip.wrapping_add(2);
        self.enter_as(Regs::SYSCALL, 0)
    }

    /// Executes SYSCALL again with the registers as they are, as a continuation does.
    pub fn syscall_again(&mut self) -> bool {
        self.regs.rip = self.regs.rip.wrapping_add(2);
        self.enter_as(Regs::SYSCALL, 0)
    }

    /// Leaves ring 3 by an exception or interrupt, with the registers as they are.
    pub fn trap(&mut self, vector: u8, error: u64) {
        self.enter_as(vector.into(), error);
    }

    /// Leaves ring 3 in one of the ways of [`Regs`].
    pub fn enter_as(&mut self, vector: u64, error: u64) -> bool {
        if vector == Regs::SYSCALL {
            self.regs.rcx = self.regs.rip;
            self.regs.r11 = self.regs.rflags;
        }
        self.regs.vector = vector;
        self.regs.error = error;
        self.guest.enter(0, &mut self.regs)
    }

    /// Runs something that ends the domain, and returns the reason.
    pub fn ends<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> ShutdownReason {
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(_) => panic!("the domain goes on"),
            Err(thrown) => match thrown.downcast::<Ended>() {
                Ok(ended) => ended.0,
                Err(panic) => resume_unwind(panic),
            },
        }
    }

    /// Makes one extended page-table operation.
    pub fn mmuext(&mut self, cmd: u32, arg1: u64, arg2: u64) -> Result<u64, Errno> {
        let op = MmuExtOp {
            cmd,
            pad: 0,
            arg1,
            arg2,
        };
        let list = self.arg(&op);
        let own = u64::from(DomId::SELF.0);
        self.call(nr::MMUEXT_OP, &[list, 1, 0, own])
    }

    /// Changes the L1 entry of an address, and flushes it.
    pub fn remap(&mut self, va: u64, pte: Pte) -> Result<u64, Errno> {
        self.call(nr::UPDATE_VA_MAPPING, &[va, pte.0, 2])
    }

    /// Registers exception handlers: vector, flags and address.
    pub fn handlers(&mut self, handlers: &[(u8, u8, u64)]) {
        let table = self.page(0);
        let end = (0, 0, 0);
        for (index, &(vector, flags, address)) in handlers.iter().chain([&end]).enumerate() {
            let info = TrapInfo {
                vector,
                flags,
                cs: FLAT_RING3_CS64,
                pad: 0,
                address,
            };
            self.put(table + index as u64 * 16, &info);
        }
        assert_eq!(self.call(nr::SET_TRAP_TABLE, &[table]), Ok(0));
    }

    /// Gives the guest a page table for user mode, made of its last free pages.
    pub fn make_user(&mut self) {
        let tables: [u64; 4] = [110, 111, 112, 113].map(|index| self.page(index));
        let frames = tables.map(|va| self.frame(va));
        let kernel = Pte::PRESENT | Pte::ACCESSED;
        let user = kernel | Pte::USER | Pte::RW;
        for (pair, level) in frames.windows(2).zip([Level::L4, Level::L3, Level::L2]) {
            let at = level.index(GuestVa(Self::USER)) * 8;
            self.guest.m.store64(pair[0], at, Pte::new(pair[1], user).0);
        }
        for index in 0..2 {
            let page = self.page(114 + index);
            let va = GuestVa(Self::USER + index * PAGE);
            let at = Level::L1.index(va) * 8;
            let frame = self.frame(page);
            self.guest.m.store64(frames[3], at, Pte::new(frame, user).0);
        }
        for (va, frame) in tables.into_iter().zip(frames) {
            assert_eq!(self.remap(va, Pte::new(frame, kernel)), Ok(0));
        }
        assert_eq!(self.mmuext(ext::PIN_L4_TABLE, frames[0].0, 0), Ok(0));
        assert_eq!(self.mmuext(ext::NEW_USER_BASEPTR, frames[0].0, 0), Ok(0));
    }

    /// Gives the kernel a stack, and handlers at [`Self::HANDLER`] plus the vector for what user
    /// mode does: exceptions, `INT 0x80` and system calls.
    pub fn handlers_for_user(&mut self) {
        let vcpu = &mut self.guest.vcpus[0];
        for vector in [1, 3, 6, 7, 13, 14, 0x80] {
            vcpu.traps[usize::from(vector)] = TrapInfo {
                vector,
                flags: 3,
                cs: FLAT_RING3_CS64,
                pad: 0,
                address: Self::HANDLER + u64::from(vector),
            };
        }
        vcpu.kernel_sp = self.layout.va(self.layout.stack + 1 + 119);
    }

    /// Returns to user mode by `iret`: `rip`, `rsp` and all else the kernel's business are those of
    /// the user pages, events are unmasked.
    pub fn enter_user(&mut self) {
        let context = IretContext {
            rip: Self::USER,
            cs: FLAT_RING3_CS64.into(),
            rflags: rflags::IF | rflags::RESERVED,
            rsp: Self::USER + 2 * PAGE,
            ss: FLAT_RING3_DS.into(),
            ..IretContext::default()
        };
        self.iret(&context);
        assert!(!self.guest.vcpus[0].in_kernel);
    }

    /// Makes the `iret` hypercall with a frame on the free page that the stack is on then.
    pub fn iret(&mut self, context: &IretContext) {
        let frame = self.page(1);
        self.put(frame, context);
        self.regs.rsp = frame;
        self.syscall(nr::IRET, &[]);
    }

    /// Sets the event callback and unmasks events.
    pub fn listen(&mut self, callback: u64) {
        self.guest.vcpus[0].event.address = callback;
        self.mask_events(false);
    }

    /// Sets the vCPU's event mask as the guest does.
    pub fn mask_events(&mut self, masked: bool) {
        let info = self.guest.vcpus[0].info;
        let at = info.offset + vcpu_info::UPCALL_MASK;
        self.guest.m.store8(info.frame, at, masked.into());
    }

    /// Returns the vCPU's pending and mask bytes.
    pub fn upcall(&self) -> (u8, u8) {
        let info = self.guest.vcpus[0].info;
        let load = |at| self.guest.m.load8(info.frame, info.offset + at);
        (
            load(vcpu_info::UPCALL_PENDING),
            load(vcpu_info::UPCALL_MASK),
        )
    }

    /// Takes all pending events, as a handler does.  Returns the ports.
    pub fn take_events(&mut self) -> Vec<u32> {
        use xen_abi::shared_info::EVTCHN_PENDING;
        let info = self.guest.vcpus[0].info;
        let m = &self.guest.m;
        m.store8(info.frame, info.offset + vcpu_info::UPCALL_PENDING, 0);
        m.store64(info.frame, info.offset + vcpu_info::PENDING_SEL, 0);
        let mut ports = Vec::new();
        for word in 0..64 {
            let pending = m.fetch_and64(Self::SHARED_INFO, EVTCHN_PENDING + word * 8, 0);
            let bits = (0..64u32).filter(|bit| pending >> bit & 1 != 0);
            ports.extend(bits.map(|bit| word as u32 * 64 + bit));
        }
        ports
    }

    /// Makes a port of the guest's own and returns it.
    pub fn bind_virq(&mut self, virq: u32) -> Port {
        let arg = self.arg(&xen_abi::evtchn::BindVirq {
            virq,
            vcpu: 0,
            port: 0,
        });
        let bound = self.call(nr::EVENT_CHANNEL_OP, &[xen_abi::evtchn::op::BIND_VIRQ, arg]);
        assert_eq!(bound, Ok(0));
        Port(self.get(arg + 8))
    }

    /// Returns the guest's system time as the guest computes it.
    pub fn guest_clock(&self) -> u64 {
        use xen_abi::shared_info::time_info;
        let info = self.guest.vcpus[0].info;
        let m = &self.guest.m;
        let at = |offset| info.offset + vcpu_info::TIME + offset;
        assert_eq!(m.load32(info.frame, at(time_info::VERSION)) & 1, 0);
        let time = crate::points::time::HostTime {
            version: 0,
            tsc_timestamp: m.load64(info.frame, at(time_info::TSC_TIMESTAMP)),
            system_time: m.load64(info.frame, at(time_info::SYSTEM_TIME)),
            tsc_to_system_mul: m.load32(info.frame, at(time_info::TSC_TO_SYSTEM_MUL)),
            tsc_shift: m.load8(info.frame, at(time_info::TSC_SHIFT)) as i8,
            flags: 0,
        };
        time.at(m.tsc())
    }

    /// Returns the wall clock as the guest computes it, nanoseconds since 1970.
    pub fn guest_wall(&self) -> u64 {
        use xen_abi::shared_info::{WC_NSEC, WC_SEC, WC_SEC_HI};
        let load = |at| u64::from(self.guest.m.load32(Self::SHARED_INFO, at));
        let seconds = load(WC_SEC_HI) << 32 | load(WC_SEC);
        (seconds * SECOND + load(WC_NSEC)).wrapping_add(self.guest_clock())
    }

    /// Returns the flags of the guest's time info, which is where it learns that it was stopped.
    pub fn time_flags(&self) -> u8 {
        use xen_abi::shared_info::time_info;
        let info = self.guest.vcpus[0].info;
        let at = info.offset + vcpu_info::TIME + time_info::FLAGS;
        self.guest.m.load8(info.frame, at)
    }

    /// Checks what must hold between any two instructions of the guest: tables lead to nothing of
    /// the shim's and are writable nowhere, by what stands in them and by what a CPU may remember,
    /// and the ledger has counted exactly what there is.
    pub fn check(&self) {
        Census::take(&self.guest).compare();
        self.guest.m.check_cache(&self.guest.ledger);
        let root = self.guest.m.root;
        assert_eq!(self.guest.ledger.used_as(root), FrameUse::L4);
        let vcpu = &self.guest.vcpus[0];
        let spaces = vcpu.spaces.as_ref().expect("it has tables");
        let expected = if vcpu.in_kernel {
            Some(spaces.kernel())
        } else {
            spaces.user()
        };
        assert_eq!(Some(root), expected, "the table of the mode is loaded");
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
