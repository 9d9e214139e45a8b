//! The backend's side of a device, in the guest's store.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::str::FromStr;

use xen_abi::DomId;
use xen_abi::xenbus::XenbusState;

use super::{number, text};
use crate::points::{DeviceId, GuestStore};

/// The device's two directories in the guest's store, as the guest sees them for ever.
#[derive(Debug)]
pub struct GuestLink {
    frontend: String,
    backend: String,
    guest: DomId,
    backend_domid: DomId,
    state: XenbusState,
}

impl GuestLink {
    /// Names the directories of `device`; nothing is written.
    pub fn new(device: DeviceId, guest: DomId, backend: DomId) -> Self {
        let (class, index) = (device.class.name(), device.index);
        Self {
            frontend: format!("/local/domain/{}/device/{class}/{index}", guest.0),
            backend: format!(
                "/local/domain/{}/backend/{class}/{}/{index}",
                backend.0, guest.0
            ),
            guest,
            backend_domid: backend,
            state: XenbusState::UNKNOWN,
        }
    }

    /// Makes both directories, as a toolstack does: `front` and `back` are what the device has in
    /// them besides the nodes that every device has.  The backend's directory comes first, for the
    /// guest watches the frontend's.
    pub fn publish(
        &mut self,
        store: &mut dyn GuestStore,
        front: &[(&str, &str)],
        back: &[(&str, &str)],
    ) {
        let initialising = XenbusState::INITIALISING.0.to_string();
        let (guest, backend_domid) = (self.guest.0.to_string(), self.backend_domid.0.to_string());
        let frontend = self.frontend.clone();
        for &(key, value) in [
            ("frontend", frontend.as_str()),
            ("frontend-id", &guest),
            ("online", "1"),
        ]
        .iter()
        .chain(back)
        {
            self.set(store, key, value);
        }
        self.set_state(store, XenbusState::INITIALISING);
        for &(key, value) in [
            ("backend", self.backend.as_str()),
            ("backend-id", &backend_domid),
        ]
        .iter()
        .chain(front)
        .chain(&[("state", initialising.as_str())])
        {
            store.write(&format!("{frontend}/{key}"), value.as_bytes(), self.guest);
        }
    }

    /// Removes both directories.
    pub fn remove(&mut self, store: &mut dyn GuestStore) {
        self.state = XenbusState::UNKNOWN;
        store.remove(&self.frontend);
        store.remove(&self.backend);
    }

    /// The state that the backend was given last.
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Writes the backend's state, even if it is the one that it had.
    pub fn set_state(&mut self, store: &mut dyn GuestStore, state: XenbusState) {
        self.state = state;
        self.set(store, "state", &state.0.to_string());
    }

    /// Writes a node of the backend's directory.
    pub fn set(&self, store: &mut dyn GuestStore, key: &str, value: &str) {
        let path = format!("{}/{key}", self.backend);
        store.write(&path, value.as_bytes(), self.backend_domid);
    }

    /// Returns the state that the guest's driver has written.
    pub fn frontend_state(&self, store: &dyn GuestStore) -> XenbusState {
        self.number(store, "state")
            .map_or(XenbusState::UNKNOWN, XenbusState)
    }

    /// Returns a number that the guest's driver has written.
    pub fn number<T: FromStr>(&self, store: &dyn GuestStore, key: &str) -> Option<T> {
        number(&store.read(&format!("{}/{key}", self.frontend))?)
    }

    /// Returns what the guest's driver has written.
    pub fn text(&self, store: &dyn GuestStore, key: &str) -> Option<String> {
        let value = store.read(&format!("{}/{key}", self.frontend))?;
        text(&value).map(ToOwned::to_owned)
    }

    /// Returns what is in the backend's directory, which the guest can not write.
    pub fn own_text(&self, store: &dyn GuestStore, key: &str) -> Option<String> {
        let value = store.read(&format!("{}/{key}", self.backend))?;
        text(&value).map(ToOwned::to_owned)
    }

    /// Whether a path that changed is the frontend's `state`, or something above it.
    pub fn is_frontend_state(&self, path: &str) -> bool {
        path.strip_prefix(self.frontend.as_str())
            .is_some_and(|rest| matches!(rest, "" | "/" | "/state"))
    }
}
