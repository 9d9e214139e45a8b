//! All migration points together, and how events find theirs.

use alloc::string::String;

use xen_abi::{Errno, GuestVa, Port};

use super::console::Console;
use super::evtchn::Peer;
use super::{Outside, Points, Progress, Request};
use crate::cpu::Machine;
use crate::host::{Host, HostEvent, HostPort};

/// The points of one guest.
pub struct AllPoints {
    console: Console,
    console_port: HostPort,
    request: Option<Request>,
}

impl AllPoints {
    /// Puts them together.
    pub fn new(console: Console, console_port: HostPort) -> Self {
        Self {
            console,
            console_port,
            request: None,
        }
    }

    fn relay_console<M: Machine, H: Host>(&mut self, outside: &mut Outside<'_, M, H>) {
        let moved = self.console.relay(outside.m);
        if moved.notify_host {
            outside.host.notify(self.console_port);
        }
        if moved.raise_guest {
            outside
                .channels
                .raise(outside.m, outside.vcpus, self.console.port());
        }
    }
}

impl<M: Machine, H: Host> Points<M, H> for AllPoints {
    fn host_event(&mut self, outside: &mut Outside<'_, M, H>, event: HostEvent) {
        match event {
            HostEvent::Console => self.relay_console(outside),
            HostEvent::Timer | HostEvent::Store | HostEvent::Port(_) => {}
        }
    }

    fn guest_notify(&mut self, outside: &mut Outside<'_, M, H>, peer: Peer, _: Port) {
        match peer {
            Peer::Console => self.relay_console(outside),
            Peer::Store | Peer::Device(_) | Peer::Own(_) => {}
        }
    }

    fn deadline(&self) -> Option<u64> {
        None
    }

    fn tick(&mut self, _: &mut Outside<'_, M, H>) {}

    fn flush(&mut self, outside: &mut Outside<'_, M, H>) {
        self.relay_console(outside);
    }

    fn grant_table_op(
        &mut self,
        _: &mut Outside<'_, M, H>,
        _: u64,
        _: GuestVa,
        _: u64,
    ) -> Result<u64, Errno> {
        Err(Errno::ENOSYS)
    }

    fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    fn quiesce(&mut self, _: &mut Outside<'_, M, H>) -> Progress {
        Progress::Done
    }

    fn reattach(&mut self, _: &mut Outside<'_, M, H>) {}

    fn attached(&mut self, _: &mut Outside<'_, M, H>) -> Result<Progress, String> {
        Ok(Progress::Done)
    }

    fn resume(&mut self, _: &mut Outside<'_, M, H>, _: bool) {}

    fn report(&mut self, _: &mut Outside<'_, M, H>, _: &str, _: &str) {}

    fn in_flight(&self) -> usize {
        0
    }
}
