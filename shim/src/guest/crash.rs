//! The end of the guest: what is told of it, and the shutdown.

use log::{error, info};
use xen_abi::sched::ShutdownReason;

use super::Guest;
use crate::cpu::deliver::Doomed;
use crate::cpu::{Machine, Regs, first};
use crate::host::Host;
use crate::points::Points;

/// A ring of the last hypercalls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent {
    calls: [(u64, u64, u64); 16],
    next: usize,
}

impl Recent {
    /// Notes a hypercall: number and first two arguments.
    #[inline]
    pub fn note(&mut self, number: u64, first: u64, second: u64) {
        self.calls[self.next % 16] = (number, first, second);
        self.next = self.next.wrapping_add(1);
    }

    /// Returns the calls, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let start = self.next.saturating_sub(16);
        (start..self.next).map(|index| self.calls[index % 16])
    }
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Ends the domain because the guest can not go on.
    pub fn crash(&mut self, v: usize, regs: &Regs, doomed: Doomed) -> ! {
        error!("guest crashed: {}", doomed.0);
        self.dump(v, regs);
        self.stop(ShutdownReason::CRASH)
    }

    /// Logs the state of a vCPU.
    pub fn dump(&self, v: usize, regs: &Regs) {
        let mode = if self.vcpus[v].in_kernel {
            "kernel"
        } else {
            "user"
        };
        error!(
            "vcpu {v} in {mode} mode, vector {:#x} error {:#x}",
            regs.vector, regs.error
        );
        error!(
            "rip {:#x}:{:#018x} rsp {:#x}:{:#018x} rflags {:#x}",
            regs.cs, regs.rip, regs.ss, regs.rsp, regs.rflags
        );
        error!(
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            regs.rax, regs.rbx, regs.rcx, regs.rdx
        );
        error!(
            "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            regs.rsi, regs.rdi, regs.rbp, regs.r8
        );
        error!(
            "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            regs.r9, regs.r10, regs.r11, regs.r12
        );
        error!(
            "r13 {:016x} r14 {:016x} r15 {:016x}",
            regs.r13, regs.r14, regs.r15
        );
        for row in 0..8u64 {
            let mut words = [0; 4];
            let va = xen_abi::GuestVa(regs.rsp.wrapping_add(row * 32));
            if self
                .m
                .read_guest(va, zerocopy::IntoBytes::as_mut_bytes(&mut words))
                .is_err()
            {
                break;
            }
            error!(
                "stack {:016x} {:016x} {:016x} {:016x}",
                words[0], words[1], words[2], words[3]
            );
        }
        for (number, first, second) in self.recent.iter() {
            error!(
                "hypercall {} ({first:#x}, {second:#x})",
                xen_abi::hypercall::name(number)
            );
        }
    }

    /// Ends the domain.
    pub fn stop(&mut self, reason: ShutdownReason) -> ! {
        info!("shutdown, reason {}", reason.0);
        // An emulated host may keep what is armed for whoever runs next on its processor.
        first::quiet_debug_registers(&mut self.m, &first::DEBUG);
        loop {
            self.with_points(Points::end);
            // It does not return from a domain that ends. Should it, there is no guest to go on
            // with.
            self.host.shutdown(reason);
        }
    }
}
