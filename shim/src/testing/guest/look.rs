//! What tests look at in a guest: its frames, tables, memory, clocks, and what must always hold.

use xen_abi::mmu::Pte;
use xen_abi::shared_info::{WC_NSEC, WC_SEC, WC_SEC_HI, time_info, vcpu_info};
use xen_abi::{GuestVa, Mfn, console};
use zerocopy::{FromBytes, IntoBytes};

use super::Bench;
use crate::cpu::Machine;
use crate::mem::{Frames, GuestMemory};
use crate::mm::{FrameUse, Mm};
use crate::points::time::{HostTime, SECOND};
use crate::testing::census::Census;
use crate::testing::machine::FakeMachine;

impl Bench {
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

    /// Returns what has come in at the guest's console so far.
    pub fn typed(&self) -> Vec<u8> {
        let count = self.guest.m.load32(Self::CONSOLE, console::IN_PROD) as usize;
        let mut typed = vec![0; count];
        self.guest.m.read(Self::CONSOLE, console::IN, &mut typed);
        typed
    }

    /// Writes to the guest's console, and tells nobody.
    pub fn say(&self, text: &[u8]) {
        let at = self.guest.m.load32(Self::CONSOLE, console::OUT_PROD);
        self.guest
            .m
            .write(Self::CONSOLE, console::OUT + at as usize, text);
        let end = at + text.len() as u32;
        self.guest.m.store32(Self::CONSOLE, console::OUT_PROD, end);
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

    /// Returns the guest's system time as the guest computes it.
    pub fn guest_clock(&self) -> u64 {
        let info = self.guest.vcpus[0].info;
        let m = &self.guest.m;
        let at = |offset| info.offset + vcpu_info::TIME + offset;
        assert_eq!(m.load32(info.frame, at(time_info::VERSION)) & 1, 0);
        let time = HostTime {
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
        let load = |at| u64::from(self.guest.m.load32(Self::SHARED_INFO, at));
        let seconds = load(WC_SEC_HI) << 32 | load(WC_SEC);
        (seconds * SECOND + load(WC_NSEC)).wrapping_add(self.guest_clock())
    }

    /// Returns the flags of the guest's time info, which is where it learns that it was stopped.
    pub fn time_flags(&self) -> u8 {
        let info = self.guest.vcpus[0].info;
        let at = info.offset + vcpu_info::TIME + time_info::FLAGS;
        self.guest.m.load8(info.frame, at)
    }

    /// Checks what must hold between any two instructions of the guest: tables lead to nothing of
    /// the shim's and are writable nowhere, by what stands in them and by what a CPU may remember,
    /// and the ledger has counted exactly what there is.
    pub fn check(&self) {
        Census::take(&self.guest).compare();
        self.guest.m.check_cpu();
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
