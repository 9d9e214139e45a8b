//! The CPU of a guest, as its privileged instructions find it.

use xen_abi::shared_info::vcpu_info;
use xen_abi::{Errno, GuestVa, Mfn, PAGE_SIZE};

use crate::boot::fill_hypercall_page;
use crate::cpu::{Machine, Vcpu, first};
use crate::guest::{Guest, mm};
use crate::host::Host;
use crate::registers::cr0;

/// Page-fault error code of a failed data access by the emulator.
const PF_WRITE: u32 = 1 << 1;

/// How a change of a control register ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It happened.
    Done,
    /// It did not: a general protection fault.
    Refused,
    /// It takes longer: the guest runs the instruction again.
    Again,
}

impl From<bool> for Loaded {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::Refused }
    }
}

/// Guest memory could not be accessed: the error code of the page fault that this is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessFault {
    /// As the CPU pushes it, but for the user bit, which the emulator adds for processes.
    pub error_code: u32,
    /// The linear address that faulted.
    pub address: u64,
}

/// One vCPU with the guest that it belongs to, for the length of one instruction.
pub struct GuestCpu<'a, M: Machine, H: Host> {
    pub(super) guest: &'a mut Guest<M, H>,
    v: usize,
}

impl<'a, M: Machine, H: Host> GuestCpu<'a, M, H> {
    /// The CPU is vCPU `v` of `guest`.
    pub fn new(guest: &'a mut Guest<M, H>, v: usize) -> Self {
        Self { guest, v }
    }

    /// The vCPU's state.
    pub(super) fn vcpu(&self) -> &Vcpu {
        &self.guest.vcpus[self.v]
    }

    /// The vCPU's state, and the machine it runs on.
    pub(super) fn vcpu_and_machine(&mut self) -> (&mut Vcpu, &mut M) {
        (&mut self.guest.vcpus[self.v], &mut self.guest.m)
    }

    /// Returns the privilege level that the guest believes to run at: 3 for processes, 1 for its
    /// kernel, or 0 if it chose architectural IOPL handling.
    pub(super) fn cpl(&self) -> u8 {
        self.vcpu().virtual_cpl(self.guest.assist)
    }

    /// Whether the guest's I/O permission bitmap allows access to a port.
    pub(super) fn port_allowed(&self, port: u16) -> bool {
        let (bitmap, count) = self.vcpu().io_bitmap;
        let byte = bitmap
            .checked_add(u64::from(port / 8))
            .and_then(|va| self.kernel_byte(va));
        // What can not be read allows nothing, as in Xen's `guest_io_okay`.
        u32::from(port) < count && byte.is_some_and(|byte| byte & 1 << (port % 8) == 0)
    }

    /// Reads a byte of the kernel's memory, whichever tables are in use.
    fn kernel_byte(&self, va: GuestVa) -> Option<u8> {
        let guest = &self.guest;
        // The bitmap is at an address of the kernel's, and the process that asks may run on tables
        // that lack it.
        let root = self.vcpu().spaces.as_ref()?.kernel();
        let entry = crate::mm::walk(&guest.m, &guest.ledger, root, va)?.entry;
        let offset = (va.0 % PAGE_SIZE as u64) as usize;
        entry
            .is_present()
            .then(|| guest.m.load8(entry.frame(), offset))
    }

    /// Returns the privilege level of a registered trap handler, `None` where there is none.
    pub(super) fn gate_dpl(&self, vector: u8) -> Option<u8> {
        let trap = self.vcpu().traps[usize::from(vector)];
        (trap.address != 0).then(|| trap.dpl())
    }

    /// Returns CR0 with the guest's TS.
    pub(super) fn cr0(&self) -> u64 {
        first::CR0
            | if self.vcpu().task_switched {
                cr0::TS
            } else {
                0
            }
    }

    /// Sets the guest's TS, as the `fpu_taskswitch` hypercall does.
    pub(super) fn set_task_switched(&mut self, ts: bool) {
        self.guest.set_task_switched(self.v, ts);
    }

    /// Returns the guest's CR2.
    pub(super) fn cr2(&self) -> u64 {
        let info = self.vcpu().info;
        let at = info.offset + vcpu_info::CR2;
        self.guest.m.load64(info.frame, at)
    }

    /// Sets the guest's CR2.
    pub(super) fn set_cr2(&mut self, value: u64) {
        let info = self.vcpu().info;
        let at = info.offset + vcpu_info::CR2;
        self.guest.m.store64(info.frame, at, value);
    }

    /// Returns the machine address of the guest's kernel page table.
    pub(super) fn cr3(&self) -> u64 {
        let spaces = self.vcpu().spaces.as_ref();
        spaces.map_or(0, |spaces| spaces.kernel().addr())
    }

    /// Switches the kernel page table, as `MMUEXT_NEW_BASEPTR` does.
    pub(super) fn set_cr3(&mut self, value: u64) -> Loaded {
        let (v, table) = (self.v, Mfn::of(value));
        match self.guest.in_steps(|guest| guest.new_baseptr(v, table)) {
            Err(Errno::ERESTART) => Loaded::Again,
            result => result.is_ok().into(),
        }
    }

    /// Sets the guest's CR4; the value is already limited to what the guest may set.
    pub(super) fn set_cr4(&mut self, value: u64) {
        self.guest.vcpus[self.v].cr4 = value;
        self.guest.m.set_guest_cr4(value);
    }

    /// Sets a debug register, as the `set_debugreg` hypercall does; `false` if that fails.
    pub(super) fn set_debug_register(&mut self, n: u8, value: u64) -> bool {
        self.guest.load_debug_register(self.v, n, value).is_ok()
    }

    /// Writes a hypercall page into a frame; `false` if the frame is none of the guest's own.
    pub(super) fn fill_hypercall_page(&mut self, frame: Mfn) -> bool {
        let mut page = [0; PAGE_SIZE];
        fill_hypercall_page(&mut page);
        mm!(self.guest).fill_page(frame, &page).is_ok()
    }

    /// Reads guest memory with the rights of the interrupted mode.  Only processes that were given
    /// ports get here with `cpl` 3, and only with addresses of the lower half.
    pub(super) fn load(&self, address: u64, buf: &mut [u8]) -> Result<(), AccessFault> {
        let fault = AccessFault {
            error_code: 0,
            address,
        };
        let read = self.guest.m.read_guest(GuestVa(address), buf);
        read.map_err(|_| fault)
    }

    /// Writes guest memory with the rights of the interrupted mode.
    pub(super) fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let fault = AccessFault {
            error_code: PF_WRITE,
            address,
        };
        let written = self.guest.m.write_guest(GuestVa(address), bytes);
        written.map_err(|_| fault)
    }
}
