//! Port I/O of a guest that has no ports: permitted reads give all ones, permitted writes vanish.

use super::super::address::{SegmentBases, ins_target, string_source};
use super::super::insn::{Insn, IoPort};
use super::super::ptstore::finish_element;
use super::super::regs::{RDI, RSI};
use super::{AccessFault, Decoded, Gpr, GuestCpu, Outcome, PAGE_FAULT};
use super::{RAX, RCX, RDX, Strings, Width, read, retire, write};
use crate::cpu::{Machine, Regs};
use crate::host::Host;

/// Where a process's part of the address space ends.
const USER_END: u64 = 1 << 47;
/// Page-fault error code: the access was a write.
const WRITE: u32 = 1 << 1;
/// Page-fault error code: the access was a process's.
const USER: u32 = 1 << 2;

/// `in`
pub(super) fn input(
    regs: &mut Regs,
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
    width: Width,
    port: IoPort,
    len: u8,
) -> Outcome {
    if !permitted(cpu, number(regs, port), width) {
        return Outcome::NotHandled;
    }
    write(
        regs,
        Gpr {
            n: RAX,
            high: false,
        },
        width,
        u64::MAX,
    );
    Outcome::Done(retire(regs, len))
}

/// `out`
pub(super) fn output(
    regs: &mut Regs,
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
    width: Width,
    port: IoPort,
    len: u8,
) -> Outcome {
    if permitted(cpu, number(regs, port), width) {
        Outcome::Done(retire(regs, len))
    } else {
        Outcome::NotHandled
    }
}

/// One element of `ins`
pub(super) fn input_string(
    regs: &mut Regs,
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
    strings: Strings,
    len: u8,
) -> Outcome {
    if !permitted(cpu, number(regs, IoPort::Dx), strings.width) {
        return Outcome::NotHandled;
    }
    if nothing_left(regs, strings) {
        return Outcome::Done(retire(regs, len));
    }
    let ones = [0xff; 8];
    let bytes = &ones[..strings.width.bytes().into()];
    let address = ins_target(regs, strings.addr32);
    // Registers move only after the store: after a fault the guest makes the same element again.
    match reachable(cpu, address, WRITE).and_then(|()| cpu.store(address, bytes)) {
        Ok(()) => Outcome::Done(finish_element(regs, len, strings, &[RDI])),
        Err(fault) => page_fault(cpu, fault),
    }
}

/// One element of `outs`
pub(super) fn output_string(
    decoded: &Decoded,
    regs: &mut Regs,
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
) -> Outcome {
    let Insn::Outs(strings) = decoded.insn else {
        return Outcome::NotHandled;
    };
    if !permitted(cpu, number(regs, IoPort::Dx), strings.width) {
        return Outcome::NotHandled;
    }
    if nothing_left(regs, strings) {
        return Outcome::Done(retire(regs, decoded.len));
    }
    let bases = SegmentBases {
        fs: cpu.guest.m.fs_base(),
        gs: cpu.guest.m.gs_base(),
    };
    let Some(address) = string_source(decoded, regs, bases) else {
        return Outcome::NotHandled;
    };
    let mut element = [0; 8];
    let element = &mut element[..strings.width.bytes().into()];
    match reachable(cpu, address, 0).and_then(|()| cpu.load(address, element)) {
        Ok(()) => Outcome::Done(finish_element(regs, decoded.len, strings, &[RSI])),
        Err(fault) => page_fault(cpu, fault),
    }
}

/// Keeps a process with I/O permission out of its kernel's half of the address space, which the
/// page tables used for the access may map.
fn reachable(
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
    address: u64,
    error_code: u32,
) -> Result<(), AccessFault> {
    if cpu.cpl() == 3 && address > USER_END - 8 {
        return Err(AccessFault {
            error_code,
            address,
        });
    }
    Ok(())
}

fn number(regs: &Regs, port: IoPort) -> u16 {
    match port {
        IoPort::Imm(port) => port.into(),
        IoPort::Dx => regs.gpr(RDX) as u16,
    }
}

/// Whether IOPL or the bitmap allows all the ports of an access; none lies beyond 65535.
fn permitted(cpu: &GuestCpu<'_, impl Machine, impl Host>, port: u16, width: Width) -> bool {
    let mut ports = u32::from(port)..u32::from(port) + u32::from(width.bytes());
    cpu.cpl() <= cpu.vcpu().iopl
        || ports.all(|port| u16::try_from(port).is_ok_and(|port| cpu.port_allowed(port)))
}

fn nothing_left(regs: &Regs, strings: Strings) -> bool {
    let width = if strings.addr32 {
        Width::W32
    } else {
        Width::W64
    };
    strings.rep
        && read(
            regs,
            Gpr {
                n: RCX,
                high: false,
            },
            width,
        ) == 0
}

fn page_fault(cpu: &mut GuestCpu<'_, impl Machine, impl Host>, fault: AccessFault) -> Outcome {
    cpu.set_cr2(fault.address);
    let user = if cpu.cpl() == 3 { USER } else { 0 };
    Outcome::Inject {
        vector: PAGE_FAULT,
        error_code: Some(fault.error_code | user),
    }
}
