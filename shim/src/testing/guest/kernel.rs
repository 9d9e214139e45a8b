//! Short ways to act as the guest's kernel.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xen_abi::mmu::{Level, MmuExtOp, Pte, ext};
use xen_abi::sched::ShutdownReason;
use xen_abi::shared_info::{EVTCHN_PENDING, vcpu_info};
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, IretContext, TrapInfo, rflags};
use xen_abi::xs_wire::{Header, MsgType, ring};
use xen_abi::{DomId, Errno, GuestVa, Port, evtchn, hypercall as nr};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use super::{Bench, PAGE};
use crate::cpu::Regs;
use crate::mem::{Frames, GuestMemory};
use crate::points::evtchn::Peer;
use crate::points::{Environment, Points};
use crate::testing::host::Ended;

impl Bench {
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
        self.guest.m.speculate();
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

    /// Takes all pending events, as a handler does.  Returns the ports.
    pub fn take_events(&mut self) -> Vec<u32> {
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

    /// Sends a request to the guest's store.
    pub fn ask_store(&mut self, kind: MsgType, payload: &[u8]) {
        self.write_to_store_ring(kind, payload);
        let store = |points: &mut Points, env: &mut Environment<'_, _, _>| {
            points.guest_notify(env, Peer::Store, Port(1));
        };
        self.guest.with_points(store);
    }

    /// Writes a request for the guest's store, of which nobody is told, and takes the answers that there are.
    pub fn write_to_store_ring(&mut self, kind: MsgType, payload: &[u8]) {
        let header = Header {
            kind: kind.0,
            req_id: 1,
            tx_id: 0,
            len: payload.len() as u32,
        };
        let message = [header.as_bytes(), payload].concat();
        let m = &self.guest.m;
        let at = m.load32(Self::STORE, ring::REQ_PROD);
        for (offset, byte) in message.iter().enumerate() {
            let index = (at as usize + offset) % ring::SIZE as usize;
            m.store8(Self::STORE, ring::REQ + index, *byte);
        }
        m.store32(Self::STORE, ring::REQ_PROD, at + message.len() as u32);
        // The answers are of no interest.
        let answered = m.load32(Self::STORE, ring::RSP_PROD);
        m.store32(Self::STORE, ring::RSP_CONS, answered);
    }

    /// Makes a port of the guest's own and returns it.
    pub fn bind_virq(&mut self, virq: u32) -> Port {
        let arg = self.arg(&evtchn::BindVirq {
            virq,
            vcpu: 0,
            port: 0,
        });
        let bound = self.call(nr::EVENT_CHANNEL_OP, &[evtchn::op::BIND_VIRQ, arg]);
        assert_eq!(bound, Ok(0));
        Port(self.get(arg + 8))
    }
}
