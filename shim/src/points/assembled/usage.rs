//! What the guest's devices take of the host, told to it a moment after devices came or went.
//!
//! They show an operator that a device that is gone has left nothing behind.

use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::Points;
use crate::cpu::Machine;
use crate::host::Host;
use crate::points::Environment;

/// How long after a change the figures have settled.
const SETTLED_NS: u64 = 1_000_000_000;

/// When to tell what.
#[derive(Debug, Default)]
pub struct Usage {
    /// Devices when it was last looked.
    devices: usize,
    /// When the figures are due, in host time.
    due: Option<u64>,
}

impl Usage {
    /// Whether there are other devices than there were.
    pub fn is_outdated(&self, devices: usize) -> bool {
        devices != self.devices
    }

    /// Notes how many devices there are.
    pub fn note(&mut self, devices: usize, now_ns: u64) {
        if devices != self.devices {
            self.devices = devices;
            self.due = Some(now_ns.saturating_add(SETTLED_NS));
        }
    }

    /// A new domain has not heard the figures: says them again.
    pub fn restart(&mut self, now_ns: u64) {
        self.due = Some(now_ns.saturating_add(SETTLED_NS));
    }

    /// When the figures are due.
    pub fn due(&self) -> Option<u64> {
        self.due
    }
}

impl Points {
    /// Publishes the figures if they are due.
    pub(super) fn report_usage<M: Machine, H: Host>(
        &mut self,
        env: &Environment<'_, M, H>,
        now_ns: u64,
    ) {
        if self.usage.due.take_if(|due| *due <= now_ns).is_none() {
            return;
        }
        let figures = [
            ("usage/devices", self.bus.len() as u64),
            ("usage/host-ports", self.bus.ports() as u64),
            ("usage/grants", self.shared.host_grants.outstanding() as u64),
            ("usage/free-frames", self.shared.pool.available() as u64),
            ("usage/heap-bytes", env.m.heap_in_use()),
            ("usage/ports", env.channels.open_ports() as u64),
        ];
        for (key, figure) in figures {
            self.report(key, &figure.to_string());
        }
        let hidden: Vec<&str> = self.bus.hidden().collect();
        self.report("not-carried", &hidden.join(" "));
    }
}
