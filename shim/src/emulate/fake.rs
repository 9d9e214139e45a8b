//! A register file and a vCPU made of plain data, for tests and fuzz targets.

use std::vec::Vec;

use xen_abi::Mfn;

use super::RegisterFile;
use super::cpuid::{FrozenCpuid, HypervisorLeaves, Leaf};
use super::msr::{MsrPolicy, MsrState};
use super::privileged::{AccessFault, Loaded, PrivilegedState};
use crate::cpu::first;

/// Plain registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeRegs {
    /// By number.
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl RegisterFile for FakeRegs {
    fn gpr(&self, n: u8) -> u64 {
        self.gprs[usize::from(n)]
    }

    fn set_gpr(&mut self, n: u8, value: u64) {
        self.gprs[usize::from(n)] = value;
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

/// Plain state; memory is `0..memory.len()`, and all else faults.
pub struct FakeVcpu {
    /// Its number.
    pub vcpu: u32,
    /// A handler for #GP is registered.
    pub gp_handler: bool,
    /// Bases of fs, gs in this mode, gs in the other.
    pub bases: [u64; 3],
    /// TSC_AUX
    pub tsc_aux: u32,
    /// MISC_FEATURES_ENABLES
    pub misc_features: u64,
    /// SPEC_CTRL
    pub spec_ctrl: u64,
    /// Barriers that were executed.
    pub barriers: Vec<u64>,
    /// Breakpoint masks.
    pub masks: [u32; 4],
    /// Virtual privilege level.
    pub cpl: u8,
    /// Virtual IOPL.
    pub iopl: u8,
    /// Ports that the bitmap allows.
    pub ports: Vec<u16>,
    /// Vectors with handlers, and their privilege level.
    pub gates: Vec<(u8, u8)>,
    /// The guest's CR0.TS.
    pub ts: bool,
    /// CR2
    pub cr2: u64,
    /// CR3; 0 is not accepted.
    pub cr3: u64,
    /// CR4
    pub cr4: u64,
    /// Debug registers.
    pub debug: [u64; 8],
    /// XCR0
    pub xcr0: u64,
    /// What CPUID says.
    pub cpuid: FrozenCpuid,
    /// What MSRs say.
    pub policy: MsrPolicy,
    /// Hypercall pages that were asked for.
    pub pages: Vec<Mfn>,
    /// Guest memory, from address 0.
    pub memory: Vec<u8>,
}

/// An Intel CPU with XSAVE, AVX, FSGSBASE, RDTSCP, speculation control and breakpoint masks.
pub fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (1, _) => [0x806f8, 0, 1 << 26 | 1 << 28, 0x0700_01ff],
        (7, 0) => [2, 1, 0, 1 << 26 | 1 << 29 | 1 << 31],
        (7, 2) => [0, 0, 0, 1],
        (0xd, 0) => [7, 832, 832, 0],
        (0xd, 1) => [0; 4],
        (0xd, 2) => [256, 576, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, 1 << 26, 1 << 27 | 1 << 29],
        _ => [0; 4],
    }
}

/// The same, but AMD.
pub fn amd(leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        7 => [0, 1, 0, 0],
        0x8000_0008 => [0x3030, 1 << 12, 0, 0],
        _ => intel(leaf, subleaf),
    }
}

impl FakeVcpu {
    /// A kernel on a CPU with the given leaves, all of whose MSRs read as ones.
    pub fn new(raw: fn(u32, u32) -> Leaf) -> Self {
        let hypervisor = HypervisorLeaves {
            version: (4, 17),
            machine_address_width: 40,
        };
        let cpuid = FrozenCpuid::freeze(raw, &hypervisor);
        let policy = MsrPolicy::freeze(|_| Some(u64::MAX), &cpuid, true);
        Self {
            vcpu: 0,
            gp_handler: true,
            bases: [0; 3],
            tsc_aux: 7,
            misc_features: 0,
            spec_ctrl: 0,
            barriers: Vec::new(),
            masks: [0; 4],
            cpl: 1,
            iopl: 1,
            ports: Vec::new(),
            gates: Vec::new(),
            ts: false,
            cr2: 0,
            cr3: 0x1000,
            cr4: first::CR4,
            debug: first::DEBUG,
            xcr0: first::XCR0,
            cpuid,
            policy,
            pages: Vec::new(),
            memory: Vec::from([0; 64]),
        }
    }
}

impl MsrState for FakeVcpu {
    fn vcpu(&self) -> u32 {
        self.vcpu
    }

    fn gp_handler_registered(&self) -> bool {
        self.gp_handler
    }

    fn fs_base(&self) -> u64 {
        self.bases[0]
    }

    fn set_fs_base(&mut self, base: u64) {
        self.bases[0] = base;
    }

    fn gs_base(&self) -> u64 {
        self.bases[1]
    }

    fn set_gs_base(&mut self, base: u64) {
        self.bases[1] = base;
    }

    fn inactive_gs_base(&self) -> u64 {
        self.bases[2]
    }

    fn set_inactive_gs_base(&mut self, base: u64) {
        self.bases[2] = base;
    }

    fn tsc(&self) -> u64 {
        0x1_2345_6789
    }

    fn tsc_aux(&self) -> u32 {
        self.tsc_aux
    }

    fn set_tsc_aux(&mut self, value: u32) {
        self.tsc_aux = value;
    }

    fn misc_features(&self) -> u64 {
        self.misc_features
    }

    fn set_misc_features(&mut self, value: u64) {
        self.misc_features = value;
    }

    fn spec_ctrl(&self) -> u64 {
        self.spec_ctrl
    }

    fn set_spec_ctrl(&mut self, value: u64) {
        self.spec_ctrl = value;
    }

    fn predictor_barrier(&mut self, command: u64) {
        self.barriers.push(command);
    }

    fn breakpoint_mask(&self, n: u8) -> u32 {
        self.masks[usize::from(n)]
    }

    fn set_breakpoint_mask(&mut self, n: u8, mask: u32) {
        self.masks[usize::from(n)] = mask;
    }
}

impl PrivilegedState for FakeVcpu {
    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn iopl(&self) -> u8 {
        self.iopl
    }

    fn port_allowed(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    fn gate_dpl(&self, vector: u8) -> Option<u8> {
        self.gates
            .iter()
            .find(|gate| gate.0 == vector)
            .map(|gate| gate.1)
    }

    fn cr0(&self) -> u64 {
        first::CR0 | u64::from(self.ts) << 3
    }

    fn set_task_switched(&mut self, ts: bool) {
        self.ts = ts;
    }

    fn cr2(&self) -> u64 {
        self.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }

    fn cr3(&self) -> u64 {
        self.cr3
    }

    fn set_cr3(&mut self, value: u64) -> Loaded {
        let table = value != 0;
        if table {
            self.cr3 = value;
        }
        table.into()
    }

    fn cr4(&self) -> u64 {
        self.cr4
    }

    fn set_cr4(&mut self, value: u64) {
        self.cr4 = value;
    }

    fn debug_register(&self, n: u8) -> u64 {
        self.debug[usize::from(n)]
    }

    fn set_debug_register(&mut self, n: u8, value: u64) -> bool {
        self.debug[usize::from(n)] = value;
        n < 6 || value >> 32 == 0
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }

    fn cpuid(&self) -> &FrozenCpuid {
        &self.cpuid
    }

    fn msr_policy(&self) -> &MsrPolicy {
        &self.policy
    }

    fn fill_hypercall_page(&mut self, frame: Mfn) -> bool {
        self.pages.push(frame);
        frame != Mfn(0)
    }

    fn load(&self, address: u64, buf: &mut [u8]) -> Result<(), AccessFault> {
        let end = (address as usize).saturating_add(buf.len());
        let fault = AccessFault {
            error_code: 0,
            address,
        };
        buf.copy_from_slice(self.memory.get(address as usize..end).ok_or(fault)?);
        Ok(())
    }

    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessFault> {
        let end = (address as usize).saturating_add(bytes.len());
        let fault = AccessFault {
            error_code: 2,
            address,
        };
        self.memory
            .get_mut(address as usize..end)
            .ok_or(fault)?
            .copy_from_slice(bytes);
        Ok(())
    }
}
