//! Quiesce, suspend, reattach: the only place that knows the order.

use log::info;

use crate::cpu::Machine;
use crate::guest::Guest;
use crate::host::Host;
use crate::points::{Points, Request};

impl<M: Machine, H: Host, P: Points<M, H>> Guest<M, H, P> {
    /// Carries out what a point asked for while vCPU `v` is out of the guest.
    pub(crate) fn migrate(&mut self, v: usize, request: Request) {
        info!("vcpu {v}: {request:?}");
    }
}
