//! The first connection, before the guest runs: the only time that anything here waits.
//!
//! A toolstack has a domain's devices in its store before the domain starts, and kernels rely on
//! it: one looks for its root disk once.  So the guest's store is filled, and the devices are
//! connected as far as their features are known, before the guest's first instruction.

use core::fmt;

use xen_abi::Errno;

use super::Points;
use crate::cpu::Machine;
use crate::host::Host;
use crate::points::Environment;

/// How long the host's xenstored may take to say what the guest's store begins with.
const STORE_NS: u64 = 60_000_000_000;
/// How long devices may take before the guest starts without them; they are plugged in later.
const DEVICES_NS: u64 = 10_000_000_000;

/// Why the guest can not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no frame for the guest's grant table.
    NoMemory(Errno),
    /// The host's xenstored says nothing, or nonsense.
    NoStore,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(errno) => write!(f, "no memory for the guest's grant table: {errno}"),
            Self::NoStore => f.write_str("the host's xenstored does not answer"),
        }
    }
}

impl Points {
    /// Connects to the host and waits until the guest may start.
    ///
    /// # Errors
    /// Why it may not.
    pub fn start<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
    ) -> Result<(), StartError> {
        self.begin(env)?;
        self.wait_while(env, STORE_NS, |points| {
            !points.is_seeded() && !points.shared.real.is_broken()
        });
        if !self.is_seeded() {
            return Err(StartError::NoStore);
        }
        self.wait_while(env, DEVICES_NS, |points| {
            !points.bus.is_settled() || !points.mirror.is_up_to_date()
        });
        if !self.bus.is_settled() {
            log::warn!("not all devices are connected; the guest starts without them");
        }
        Ok(())
    }

    /// Makes the guest's grant table and asks the host's store.
    pub(super) fn begin<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
    ) -> Result<(), StartError> {
        self.shared
            .create_guest_table(env)
            .map_err(StartError::NoMemory)?;
        self.begin_seeding();
        self.relay_console(env);
        self.exchange(env);
        Ok(())
    }

    /// Handles events while `busy`, but not for much longer than `limit_ns`.
    fn wait_while<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        limit_ns: u64,
        busy: impl Fn(&Self) -> bool,
    ) {
        let limit = env.host.now_ns().saturating_add(limit_ns);
        while busy(self) && env.host.now_ns() < limit {
            let next = self.deadline().unwrap_or(limit).min(limit);
            env.host.wait(Some(next));
            while let Some(event) = env.host.take_event() {
                self.host_event(env, event);
            }
            // The wait may have ended by a deadline, of which no event tells.
            self.tick(env);
        }
    }
}
