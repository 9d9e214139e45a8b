//! A vCPU as the emulator of privileged instructions sees it.

use xen_abi::shared_info::vcpu_info;
use xen_abi::{Errno, GuestVa, Mfn, PAGE_SIZE};

use super::{Machine, Regs, first};
use crate::boot::fill_hypercall_page;
use crate::emulate::cpuid::FrozenCpuid;
use crate::emulate::msr::{MsrPolicy, MsrState};
use crate::emulate::privileged::{AccessFault, Loaded, PrivilegedState};
use crate::emulate::regs::RegisterFile;
use crate::guest::{Guest, mm};
use crate::host::Host;

/// CR0.TS.
const CR0_TS: u64 = 1 << 3;
/// Page-fault error code of a failed data access by the emulator.
const PF_WRITE: u32 = 1 << 1;

/// The registers and the guest, for the length of one instruction.
pub(super) struct View<'a, M: Machine, H: Host> {
    guest: &'a mut Guest<M, H>,
    v: usize,
}

impl<'a, M: Machine, H: Host> View<'a, M, H> {
    pub(super) fn new(guest: &'a mut Guest<M, H>, v: usize) -> Self {
        Self { guest, v }
    }

    fn vcpu(&self) -> &super::Vcpu {
        &self.guest.vcpus[self.v]
    }

    /// Reads a byte of the kernel's memory, whichever tables are in use.
    fn kernel_byte(&self, va: GuestVa) -> Option<u8> {
        let guest = &self.guest;
        let root = self.vcpu().spaces.as_ref()?.kernel();
        let entry = crate::mm::walk(&guest.m, &guest.ledger, root, va)?.entry;
        let offset = (va.0 % PAGE_SIZE as u64) as usize;
        entry
            .is_present()
            .then(|| guest.m.load8(entry.frame(), offset))
    }
}

impl RegisterFile for Regs {
    fn gpr(&self, n: u8) -> u64 {
        Self::gpr(self, n)
    }
    fn set_gpr(&mut self, n: u8, value: u64) {
        Self::set_gpr(self, n, value);
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
}

impl<M: Machine, H: Host> MsrState for View<'_, M, H> {
    fn vcpu(&self) -> u32 {
        self.v as u32
    }
    fn gp_handler_registered(&self) -> bool {
        self.vcpu().traps[13].address != 0
    }
    fn fs_base(&self) -> u64 {
        self.guest.m.fs_base()
    }
    fn set_fs_base(&mut self, base: u64) {
        self.guest.m.set_fs_base(base);
    }
    fn gs_base(&self) -> u64 {
        self.guest.m.gs_base()
    }
    fn set_gs_base(&mut self, base: u64) {
        self.guest.m.exchange_gs_base(base);
    }
    fn inactive_gs_base(&self) -> u64 {
        self.vcpu().other_gs_base
    }
    fn set_inactive_gs_base(&mut self, base: u64) {
        self.guest.vcpus[self.v].other_gs_base = base;
    }
    fn tsc(&self) -> u64 {
        self.guest.m.tsc()
    }
    fn tsc_aux(&self) -> u32 {
        self.vcpu().tsc_aux
    }
    fn set_tsc_aux(&mut self, value: u32) {
        const TSC_AUX: u32 = 0xc000_0103;
        self.guest.vcpus[self.v].tsc_aux = value;
        self.guest.m.write_msr(TSC_AUX, value.into());
    }
    fn misc_features(&self) -> u64 {
        self.vcpu().misc_features
    }
    fn set_misc_features(&mut self, value: u64) {
        self.guest.vcpus[self.v].misc_features = value;
    }
    fn spec_ctrl(&self) -> u64 {
        self.vcpu().spec_ctrl
    }
    fn set_spec_ctrl(&mut self, value: u64) {
        const SPEC_CTRL: u32 = 0x48;
        self.guest.vcpus[self.v].spec_ctrl = value;
        self.guest.m.write_msr(SPEC_CTRL, value);
    }
    fn predictor_barrier(&mut self, command: u64) {
        const PRED_CMD: u32 = 0x49;
        self.guest.m.write_msr(PRED_CMD, command);
    }
    fn breakpoint_mask(&self, n: u8) -> u32 {
        self.vcpu().breakpoint_masks[usize::from(n & 3)]
    }
    fn set_breakpoint_mask(&mut self, n: u8, mask: u32) {
        const DR0_MASK: u32 = 0xc001_1027;
        const DR1_MASK: u32 = 0xc001_1019;
        self.guest.vcpus[self.v].breakpoint_masks[usize::from(n & 3)] = mask;
        let register = if n & 3 == 0 {
            DR0_MASK
        } else {
            DR1_MASK + u32::from(n & 3) - 1
        };
        self.guest.m.write_msr(register, mask.into());
    }
}

impl<M: Machine, H: Host> PrivilegedState for View<'_, M, H> {
    fn cpl(&self) -> u8 {
        self.vcpu().virtual_cpl(self.guest.assist)
    }
    fn iopl(&self) -> u8 {
        self.vcpu().iopl
    }
    fn port_allowed(&self, port: u16) -> bool {
        let (bitmap, count) = self.vcpu().io_bitmap;
        let byte = bitmap
            .checked_add(u64::from(port / 8))
            .and_then(|va| self.kernel_byte(va));
        u32::from(port) < count && byte.is_some_and(|byte| byte & 1 << (port % 8) == 0)
    }
    fn gate_dpl(&self, vector: u8) -> Option<u8> {
        let trap = self.vcpu().traps[usize::from(vector)];
        (trap.address != 0).then(|| trap.dpl())
    }
    fn cr0(&self) -> u64 {
        first::CR0 | if self.vcpu().task_switched { CR0_TS } else { 0 }
    }
    fn set_task_switched(&mut self, ts: bool) {
        self.guest.set_task_switched(self.v, ts);
    }
    fn cr2(&self) -> u64 {
        let info = self.vcpu().info;
        self.guest
            .m
            .load64(info.frame, info.offset + vcpu_info::CR2)
    }
    fn set_cr2(&mut self, value: u64) {
        let info = self.vcpu().info;
        self.guest
            .m
            .store64(info.frame, info.offset + vcpu_info::CR2, value);
    }
    fn cr3(&self) -> u64 {
        self.vcpu()
            .spaces
            .as_ref()
            .map_or(0, |spaces| spaces.kernel().addr())
    }
    fn set_cr3(&mut self, value: u64) -> Loaded {
        let (v, table) = (self.v, Mfn::of(value));
        match self.guest.in_steps(|guest| guest.new_baseptr(v, table)) {
            Err(Errno::ERESTART) => Loaded::Again,
            result => result.is_ok().into(),
        }
    }
    fn cr4(&self) -> u64 {
        self.vcpu().cr4
    }
    fn set_cr4(&mut self, value: u64) {
        self.guest.vcpus[self.v].cr4 = value;
        self.guest.m.set_guest_cr4(value);
    }
    fn debug_register(&self, n: u8) -> u64 {
        self.vcpu().debug[usize::from(n & 7)]
    }
    fn set_debug_register(&mut self, n: u8, value: u64) -> bool {
        self.guest.load_debug_register(self.v, n, value).is_ok()
    }
    fn xcr0(&self) -> u64 {
        self.guest.m.xcr0()
    }
    fn set_xcr0(&mut self, value: u64) {
        self.guest.m.set_xcr0(value);
    }
    fn cpuid(&self) -> &FrozenCpuid {
        &self.guest.cpuid
    }
    fn msr_policy(&self) -> &MsrPolicy {
        &self.guest.msrs
    }
    fn fill_hypercall_page(&mut self, frame: Mfn) -> bool {
        let mut page = [0; PAGE_SIZE];
        fill_hypercall_page(&mut page);
        mm!(self.guest).fill_page(frame, &page).is_ok()
    }
    fn load(&self, address: u64, buf: &mut [u8]) -> Result<(), AccessFault> {
        let fault = AccessFault {
            error_code: 0,
            address,
        };
        self.guest
            .m
            .read_guest(GuestVa(address), buf)
            .map_err(|_| fault)
    }
    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let fault = AccessFault {
            error_code: PF_WRITE,
            address,
        };
        self.guest
            .m
            .write_guest(GuestVa(address), bytes)
            .map_err(|_| fault)
    }
}
