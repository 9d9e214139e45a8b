//! A device's backend in the control domain, of whichever class: [`Peer`], at one place in the store.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets use a part of what the tests need")
)]

use crate::points::device::model::{HostNodes, Peer};
use crate::testing::FakeFrames;

/// A backend.
pub(crate) trait Backend {
    /// The frontend's directory, in the domain's.
    fn front(&self) -> String;
    /// The backend's directory.
    fn dir(&self) -> String;
    /// The toolstack has made the device.
    fn announce(&self, store: &mut dyn HostNodes);
    /// The frontend has written its state.
    fn frontend_changed(&mut self, store: &mut dyn HostNodes, mem: &FakeFrames);
    /// The frontend has notified it: takes what there is, and answers it unless it holds it.
    fn kicked(&mut self, mem: &FakeFrames);
    /// Answers `count` requests that it has held.
    fn answer(&mut self, mem: &FakeFrames, count: usize);
    /// Gives the domain a packet, all of `byte`; `false` if there is no room.
    fn deliver(&mut self, mem: &FakeFrames, byte: u8) -> bool;
    /// How many requests it has taken and not answered.
    fn in_flight(&self) -> usize;
    /// Whether requests are held until [`answer`](Self::answer).
    fn hold(&mut self, holds: bool);
    /// The next host lacks the device, or has it.
    fn miss(&mut self, is_missing: bool);
    /// Whether the host lacks it.
    fn is_missing(&self) -> bool;
    /// The next host's backend is not ready when the domain comes, or is.
    fn be_slow(&mut self, is_slow: bool);
    /// Whether it is not ready.
    fn is_slow(&self) -> bool;
    /// The domain comes to another host, whose backend knows what goes along with a domain.
    fn arrive(&mut self);
}

/// A backend of a class.
pub(crate) struct Placed<B: Peer> {
    /// The model.
    pub backend: B,
    /// Makes the one of the next host.
    next: fn() -> B,
    holds: bool,
    is_missing: bool,
    is_slow: bool,
}

impl<B: Peer> Placed<B> {
    /// Every host has what `next` makes.
    pub(crate) fn new(next: fn() -> B) -> Self {
        Self {
            backend: next(),
            next,
            holds: false,
            is_missing: false,
            is_slow: false,
        }
    }
}

impl<B: Peer> Backend for Placed<B> {
    fn front(&self) -> String {
        B::host_front()
    }
    fn dir(&self) -> String {
        B::dir()
    }
    fn announce(&self, store: &mut dyn HostNodes) {
        self.backend.announce(store);
    }
    fn frontend_changed(&mut self, store: &mut dyn HostNodes, mem: &FakeFrames) {
        self.backend.frontend_changed(store, mem);
    }
    fn kicked(&mut self, mem: &FakeFrames) {
        self.backend.take(mem);
        if !self.holds {
            self.backend.serve(mem);
        }
    }
    fn answer(&mut self, mem: &FakeFrames, count: usize) {
        for _ in 0..count {
            self.backend.answer_one(mem);
        }
    }
    fn deliver(&mut self, mem: &FakeFrames, byte: u8) -> bool {
        self.backend.deliver_one(mem, byte)
    }
    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }
    fn hold(&mut self, holds: bool) {
        self.holds = holds;
    }
    fn miss(&mut self, is_missing: bool) {
        self.is_missing = is_missing;
    }
    fn is_missing(&self) -> bool {
        self.is_missing
    }
    fn be_slow(&mut self, is_slow: bool) {
        self.is_slow = is_slow;
    }
    fn is_slow(&self) -> bool {
        self.is_slow
    }
    fn arrive(&mut self) {
        let old = std::mem::replace(&mut self.backend, (self.next)());
        self.backend.succeed(old);
    }
}
