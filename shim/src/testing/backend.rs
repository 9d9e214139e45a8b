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
    /// The device's number within its class.
    index: u32,
    holds: bool,
    is_missing: bool,
    is_slow: bool,
}

impl<B: Peer> Placed<B> {
    /// Every host has what `next` makes, as device number `index`.
    pub(crate) fn new(index: u32, next: fn() -> B) -> Self {
        Self {
            backend: next(),
            next,
            index,
            holds: false,
            is_missing: false,
            is_slow: false,
        }
    }
}

impl<B: Peer> Placed<B> {
    /// The store as the model knows it, which has one number for all devices of its class.
    fn view<'a>(&self, store: &'a mut dyn HostNodes) -> Numbered<'a> {
        Numbered {
            store,
            places: [(B::host_front(), self.front()), (B::dir(), self.dir())],
        }
    }
}

/// The directory beside `dir` that belongs to number `index`.
fn numbered(dir: &str, index: u32) -> String {
    let (class, _) = dir.rsplit_once('/').expect("a device's directory");
    format!("{class}/{index}")
}

/// A store in which two directories stand for others.
struct Numbered<'a> {
    store: &'a mut dyn HostNodes,
    places: [(String, String); 2],
}

impl Numbered<'_> {
    fn real(&self, path: &str) -> String {
        let mut places = self.places.iter();
        let real =
            places.find_map(|(dir, real)| Some(format!("{real}{}", path.strip_prefix(dir)?)));
        real.unwrap_or_else(|| path.to_owned())
    }
}

impl HostNodes for Numbered<'_> {
    fn get(&self, path: &str) -> Option<String> {
        self.store.get(&self.real(path))
    }
    fn set(&mut self, path: &str, value: &str) {
        // The frontend is told where its backend is.
        let (path, value) = (self.real(path), self.real(value));
        self.store.set(&path, &value);
    }
    fn remove(&mut self, directory: &str) {
        let directory = self.real(directory);
        self.store.remove(&directory);
    }
}

impl<B: Peer> Backend for Placed<B> {
    fn front(&self) -> String {
        numbered(&B::host_front(), self.index)
    }
    fn dir(&self) -> String {
        numbered(&B::dir(), self.index)
    }
    fn announce(&self, store: &mut dyn HostNodes) {
        self.backend.announce(&mut self.view(store));
    }
    fn frontend_changed(&mut self, store: &mut dyn HostNodes, mem: &FakeFrames) {
        let mut view = self.view(store);
        self.backend.frontend_changed(&mut view, mem);
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
