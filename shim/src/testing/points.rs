//! Points that only remember what they were called for, and answer as they are told.

use std::collections::VecDeque;
use std::string::String;

use xen_abi::{Errno, GuestVa, Port};

use crate::cpu::Machine;
use crate::host::{Arrival, Host, HostEvent};
use crate::points::evtchn::Peer;
use crate::points::{Outside, Points, Progress};

/// What the points were called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Points::host_event`].
    Event(HostEvent),
    /// [`Points::guest_notify`].
    Notify(Peer, Port),
    /// [`Points::tick`].
    Tick,
    /// [`Points::flush`].
    Flush,
    /// [`Points::end`].
    End,
    /// [`Points::grant_table_op`].
    Grant(u64, GuestVa, u64),
    /// [`Points::quiesce`], with its answer.
    Quiesce(Progress),
    /// [`Points::reattach`].
    Reattach(Arrival),
    /// [`Points::resume`], and whether the domain is a new one.
    Resume(bool),
    /// [`Points::report`].
    Report(String, String),
}

/// What an event of the host's store is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnStore {
    /// The host asks for a suspend.
    Suspend,
    /// The device that was missing is there.
    Attached,
}

/// The points.
#[derive(Debug, Default)]
pub struct FakePoints {
    /// The calls so far.
    pub calls: Vec<Call>,
    /// Since when the host waits for a suspend.
    pub suspend_due: Option<u64>,
    /// When the next tick is due, host time.
    pub deadline: Option<u64>,
    /// Requests in flight; each event of a port answers one.
    pub in_flight: usize,
    /// Why a device is missing; an empty reason is a device that may still come by itself.
    pub missing: Option<String>,
    /// What the next events of the store are about.
    pub on_store: VecDeque<OnStore>,
    /// What the next `grant_table_op` leaves of its list; without it there is no such call.
    pub grants_left: Option<(GuestVa, u64)>,
}

impl FakePoints {
    /// Returns the values that were reported below `key`, in order.
    pub fn reports(&self, key: &str) -> Vec<&str> {
        let values = self.calls.iter().filter_map(|call| match call {
            Call::Report(told, value) if told == key => Some(value.as_str()),
            _ => None,
        });
        values.collect()
    }

    /// Returns the calls that are not reports, ticks or flushes.
    pub fn acts(&self) -> Vec<&Call> {
        let is_act = |call: &&Call| !matches!(call, Call::Report(..) | Call::Tick | Call::Flush);
        self.calls.iter().filter(is_act).collect()
    }
}

impl<M: Machine, H: Host> Points<M, H> for FakePoints {
    fn host_event(&mut self, outside: &mut Outside<'_, M, H>, event: HostEvent) {
        self.calls.push(Call::Event(event));
        match event {
            HostEvent::Port(_) => self.in_flight = self.in_flight.saturating_sub(1),
            HostEvent::Store => match self.on_store.pop_front() {
                Some(OnStore::Suspend) => self.suspend_due = Some(outside.host.now_ns()),
                Some(OnStore::Attached) => self.missing = None,
                None => {}
            },
            HostEvent::Timer | HostEvent::Console => {}
        }
    }
    fn guest_notify(&mut self, _: &mut Outside<'_, M, H>, peer: Peer, port: Port) {
        self.calls.push(Call::Notify(peer, port));
    }
    fn deadline(&self) -> Option<u64> {
        self.deadline
    }
    fn tick(&mut self, outside: &mut Outside<'_, M, H>) {
        self.calls.push(Call::Tick);
        let now = outside.host.now_ns();
        self.deadline = self.deadline.filter(|&at| at > now);
    }
    fn flush(&mut self, _: &mut Outside<'_, M, H>) {
        self.calls.push(Call::Flush);
    }
    fn end(&mut self, _: &mut Outside<'_, M, H>) {
        self.calls.push(Call::End);
    }
    fn grant_table_op(
        &mut self,
        _: &mut Outside<'_, M, H>,
        _: usize,
        command: u64,
        args: GuestVa,
        count: u64,
    ) -> Result<Option<(GuestVa, u64)>, Errno> {
        self.calls.push(Call::Grant(command, args, count));
        self.grants_left.take().map(Some).ok_or(Errno::ENOSYS)
    }
    fn is_suspend_due(&self) -> bool {
        self.suspend_due.is_some()
    }
    fn take_suspend(&mut self) -> Option<u64> {
        self.suspend_due.take()
    }
    fn quiesce(&mut self, _: &mut Outside<'_, M, H>) -> Progress {
        let progress = if self.in_flight == 0 {
            Progress::Done
        } else {
            Progress::Waiting
        };
        self.calls.push(Call::Quiesce(progress));
        progress
    }
    fn reattach(&mut self, _: &mut Outside<'_, M, H>, arrival: Arrival) {
        self.calls.push(Call::Reattach(arrival));
    }
    fn attached(&mut self, _: &mut Outside<'_, M, H>) -> Result<Progress, String> {
        match &self.missing {
            None => Ok(Progress::Done),
            Some(why) if why.is_empty() => Ok(Progress::Waiting),
            Some(why) => Err(why.clone()),
        }
    }
    fn awaited(&self) -> String {
        "backends that are connecting".to_owned()
    }
    fn resume(&mut self, _: &mut Outside<'_, M, H>, moved: bool) {
        self.calls.push(Call::Resume(moved));
    }
    fn report(&mut self, _: &mut Outside<'_, M, H>, key: &str, value: &str) {
        self.calls
            .push(Call::Report(key.to_owned(), value.to_owned()));
    }
    fn in_flight(&self) -> usize {
        self.in_flight
    }
    fn usage(&self) -> [(&'static str, u64); 2] {
        [("holds", 0), ("grants", self.in_flight as u64)]
    }
}
