//! A host's backend: the part of it that every class has, which is to follow the frontend's states as Linux's
//! do.

use crate::points::device::Protocol;
use crate::testing::FakeFrames;

/// The state in which a backend was left by the toolstack, or waits for rings.
const INIT_WAIT: u32 = 2;
const CONNECTED: u32 = 4;
const CLOSING: u32 = 5;
const CLOSED: u32 = 6;

/// The nodes that a backend and its toolstack know: paths below the domain's directory, or absolute ones.
pub(crate) trait HostNodes {
    /// Reads a node.
    fn get(&self, path: &str) -> Option<String>;
    /// Writes one.
    fn set(&mut self, path: &str, value: &str);
    /// Removes one, with all below it.
    fn remove(&mut self, directory: &str);
}

/// A model of a class's backend.
pub(crate) trait Peer: Sized {
    /// The class.
    type Protocol: Protocol;
    /// Number of the device within its class.
    const INDEX: u32;
    /// What the toolstack writes into the frontend's directory.
    const FRONT: &'static [(&'static str, &'static str)];
    /// Frames that the device finds in its pool.
    const POOL: u64;
    /// Whether it gives up the rings as soon as the frontend closes, and not only when that has closed.
    const LETS_GO_EARLY: bool;

    /// What it publishes before it waits for a frontend.
    fn terms(&self) -> Vec<(&'static str, String)>;
    /// What it publishes when it has the rings.
    fn details(&self) -> Vec<(&'static str, String)>;
    /// Whether it has rings.
    fn is_attached(&self) -> bool;
    /// Takes the rings that a frontend has published; `false` if they are not there any more.
    fn attach(&mut self, mem: &FakeFrames, front: &dyn Fn(&str) -> Option<String>) -> bool;
    /// Gives the frontend something that it did not ask for one by one: a packet all of `byte`.  `false` if there
    /// is no such thing, or no room for it.
    fn deliver_one(&mut self, _mem: &FakeFrames, _byte: u8) -> bool {
        false
    }
    /// Drops the rings, and everything that was mapped.
    fn detach(&mut self, mem: &FakeFrames);
    /// Takes everything that waits, and maps it.
    fn take(&mut self, mem: &FakeFrames);
    /// How many requests it has taken and not answered.
    fn in_flight(&self) -> usize;
    /// Does one of them, and answers it well.
    fn answer_one(&mut self, mem: &FakeFrames);
    /// Takes everything that waits, does it and answers it well.
    fn serve(&mut self, mem: &FakeFrames) {
        self.take(mem);
        while self.in_flight() > 0 {
            self.answer_one(mem);
        }
    }
    /// Unmaps what was kept beyond its answer.
    fn let_go(&mut self, mem: &FakeFrames);
    /// Takes the place of the backend of the last host, of which it knows what goes along with the guest.
    fn succeed(&mut self, old: Self);

    /// The frontend's directory in the real store.
    fn host_front() -> String {
        format!("device/{}/{}", Self::Protocol::CLASS.name(), Self::INDEX)
    }

    /// The backend's directory in the real store.
    fn dir() -> String {
        let class = Self::Protocol::CLASS.name();
        format!("/local/domain/0/backend/{class}/7/{}", Self::INDEX)
    }

    /// The toolstack has made the device, and the backend is ready for a frontend.
    fn announce(&self, store: &mut dyn HostNodes) {
        let (front, dir) = (Self::host_front(), Self::dir());
        let always = [("backend", dir.as_str()), ("backend-id", "0")];
        for (key, value) in always.iter().chain(Self::FRONT).chain(&[("state", "1")]) {
            store.set(&format!("{front}/{key}"), value);
        }
        for (key, value) in self.terms() {
            Self::set(store, key, &value);
        }
        Self::set_state(store, INIT_WAIT);
    }

    /// Writes the backend's state.
    fn set_state(store: &mut dyn HostNodes, state: u32) {
        Self::set(store, "state", &state.to_string());
    }

    /// Writes a node of the backend's directory.
    fn set(store: &mut dyn HostNodes, key: &str, value: &str) {
        store.set(&format!("{}/{key}", Self::dir()), value);
    }

    /// The frontend has written its state.
    fn frontend_changed(&mut self, store: &mut dyn HostNodes, mem: &FakeFrames) {
        let front = |key: &str| store.get(&format!("{}/{key}", Self::host_front()));
        let ours = store.get(&format!("{}/state", Self::dir()));
        let theirs = front("state").and_then(|state| state.parse::<u32>().ok());
        match theirs {
            Some(given) if given == Self::Protocol::GIVEN.0 => {
                if self.is_attached() {
                    return;
                }
                // A frontend that has thought better of it is a fatal error, to the backend.
                if !self.attach(mem, &front) {
                    return Self::set_state(store, CLOSING);
                }
                for (key, value) in self.details() {
                    Self::set(store, key, &value);
                }
                Self::set_state(store, CONNECTED);
            }
            Some(CLOSING) => {
                if Self::LETS_GO_EARLY {
                    self.detach(mem);
                }
                Self::set_state(store, CLOSING);
            }
            Some(CLOSED) => {
                self.detach(mem);
                Self::set_state(store, CLOSED);
            }
            Some(1) if ours.as_deref() == Some("6") => Self::set_state(store, INIT_WAIT),
            _ => {}
        }
    }

    /// The toolstack removes the device by force.
    fn vanish(&mut self, store: &mut dyn HostNodes, mem: &FakeFrames) {
        self.detach(mem);
        store.remove(&Self::dir());
    }
}
