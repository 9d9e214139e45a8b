//! The PV hypercalls, one file for each family.
//!
//! A handler gets the five argument registers, works on copies of what they point to, and returns
//! what goes into `rax`; one place turns errors into negative numbers.

mod callbacks;
mod evtchn;
mod memory;
mod misc;
mod mmu;
mod multicall;
mod sched;
mod segments;
mod time;
mod vcpu;
mod version;

#[cfg(test)]
mod tests;

use xen_abi::hypercall as nr;
use xen_abi::{Errno, GuestVa};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpu::deliver::{self, Doomed};
use crate::cpu::{Machine, Regs};
use crate::guest::{Args, Guest, mm};
use crate::host::Host;
use crate::mem::GuestMemory;

/// What a hypercall returns in `rax`.
pub type Answer = Result<u64, Errno>;

/// Bytes of the instruction that makes a hypercall.
const SYSCALL_LENGTH: u64 = 2;

/// Copies a structure from the guest.
pub fn read<T>(memory: &impl GuestMemory, va: u64) -> Result<T, Errno>
where
    T: FromBytes + IntoBytes,
{
    // A copy, and the only one: the guest may change its own while we look, so nothing is read
    // twice.
    let mut value = T::new_zeroed();
    memory.read_guest(GuestVa(va), value.as_mut_bytes())?;
    Ok(value)
}

/// Copies a structure to the guest.
pub fn write<T>(memory: &impl GuestMemory, va: u64, value: &T) -> Result<(), Errno>
where
    T: IntoBytes + Immutable + KnownLayout,
{
    Ok(memory.write_guest(GuestVa(va), value.as_bytes())?)
}

/// Returns the address of element `index` of an array of `T` at `base`, or `EFAULT` on wrap.
pub fn element<T>(base: u64, index: u64) -> Result<u64, Errno> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| base.checked_add(offset))
        .ok_or(Errno::EFAULT)
}

/// Whether `len` bytes at `va` lie in the parts of the address space that a guest may use; what is
/// mapped there shows when they are used.
pub fn is_guests(va: u64, len: u64) -> bool {
    use xen_abi::mmu::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
    // A length that wraps around would end below where it begins, and look like the guest's.
    va.checked_add(len)
        .is_some_and(|end| end <= 1 << 47 || va >= HYPERVISOR_VIRT_END)
        && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&va)
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Carries out the hypercall that the guest's kernel on vCPU `v` made.
    pub fn hypercall(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        // Noted before anything is done: should the call end the guest, it is the last in the
        // report.
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8];
        self.recent.note(regs.rax, args[0], args[1]);
        match regs.rax {
            // Apart from `dispatch`: it has no answer, for all registers come from the guest's
            // frame.
            nr::IRET => deliver::iret(&mut self.m, &mut self.vcpus[v], self.assist, regs),
            nr::MULTICALL => {
                // The batch may end in an iret, which leaves its own value in rax.
                if let Some(answer) = self.multicall(v, regs, args)? {
                    self.answer(regs, answer);
                }
                Ok(())
            }
            number => {
                let answer = self.dispatch(v, number, args);
                self.answer(regs, answer);
                Ok(())
            }
        }
    }

    /// Loads the registers with the answer to a hypercall, or with what makes the guest repeat it
    /// for the rest of the work.
    fn answer(&mut self, regs: &mut Regs, answer: Answer) {
        if let Some(args) = self.continuation.take() {
            [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8] = args;
            // Back onto the SYSCALL itself, where rax still has the number. Prefixes come before
            // the two bytes, so this holds with any. rcx keeps the address behind it, so the way
            // back is IRET.
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LENGTH);
            return;
        }
        // ERESTART is between us and our callers; no kernel knows it.
        debug_assert_ne!(answer, Err(Errno::ERESTART), "without a continuation");
        regs.rax = answer.unwrap_or_else(Errno::to_rax);
    }

    /// Whether a hypercall with a long list should give way to others.  The guest chooses
    /// the length, and while the list is worked on nothing else happens, not even a suspend.
    fn should_stop(&self) -> bool {
        // Asking counts as a look, whatever the answer: with events pending the caller stops now.
        self.ledger.work().note_look();
        self.host.has_events()
    }

    /// Runs a long operation in steps, and looks between them whether others want their turn.  On
    /// `ERESTART` the caller makes the same operation again.
    ///
    /// # Errors
    /// Those of `act`; among them `ERESTART` when others should.
    pub(crate) fn in_steps<R>(
        &mut self,
        mut act: impl FnMut(&mut Self) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        loop {
            match act(self) {
                // The step is over, but the host wants nothing: go on at once, which spares the
                // guest the way out and in.
                Err(Errno::ERESTART) if !self.should_stop() => {}
                result => return result,
            }
        }
    }

    /// Finishes the releases that an earlier operation has left half done.
    ///
    /// # Errors
    /// `ERESTART` when others should have their turn first.
    fn finish_releases(&mut self) -> Result<(), Errno> {
        if !self.ledger.is_releasing() {
            return Ok(());
        }
        self.in_steps(|guest| mm!(guest).finish_releases())
    }

    /// Carries out any hypercall but `iret` and `multicall`.
    fn dispatch(&mut self, v: usize, number: u64, args: Args) -> Answer {
        match number {
            nr::MMU_UPDATE => self.mmu_update(args),
            nr::UPDATE_VA_MAPPING => self.update_va_mapping(v, args),
            nr::MMUEXT_OP => self.mmuext_op(v, args),
            nr::STACK_SWITCH => self.stack_switch(v, args),
            nr::SET_SEGMENT_BASE => self.set_segment_base(v, args),
            nr::UPDATE_DESCRIPTOR => self.update_descriptor(args),
            nr::SCHED_OP => self.sched_op(v, args),
            nr::SET_TIMER_OP => self.set_timer_op(v, args),
            nr::VCPU_OP => self.vcpu_op(v, args),
            nr::EVENT_CHANNEL_OP => self.event_channel_op(args),
            nr::FPU_TASKSWITCH => self.fpu_taskswitch(v, args),
            nr::XEN_VERSION => self.xen_version(args),
            nr::MEMORY_OP => self.memory_op(args),
            nr::GRANT_TABLE_OP => {
                let [command, list, count, ..] = args;
                let left = self.with_points(|points, env| {
                    points.grant_table_op(env, v, command, GuestVa(list), count)
                })?;
                // A list of grant operations stops like any other; its count is what is left.
                self.continuation = left.map(|(list, count)| [command, list.0, count, 0, 0]);
                Ok(0)
            }
            nr::SET_TRAP_TABLE => self.set_trap_table(v, args),
            nr::SET_CALLBACKS => self.set_callbacks(v, args),
            nr::CALLBACK_OP => self.callback_op(v, args),
            nr::SET_GDT => self.set_gdt(v, args),
            nr::SET_DEBUGREG => self.set_debugreg(v, args),
            nr::GET_DEBUGREG => self.get_debugreg(v, args),
            nr::PHYSDEV_OP => self.physdev_op(v, args),
            nr::VM_ASSIST => self.vm_assist(args),
            nr::CONSOLE_IO => self.console_io(args),
            nr::NMI_OP => self.nmi_op(v, args),
            _ => Err(Errno::ENOSYS),
        }
    }
}
