//! What devices need of the handshake through the store (`xen/include/public/io/xenbus.h`).
//!
//! Towards the host a device is a frontend: a [`HostLink`] finds the backend, watches its state
//! and collects the nodes that the device asks for, all without ever waiting.  Towards the guest
//! it is a backend: a [`GuestLink`] publishes the device's two directories in the virtual store
//! and reads what the guest's driver wrote.

mod guest_link;
mod host_link;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::str::FromStr;

use xen_abi::Errno;

pub use self::guest_link::GuestLink;
pub use self::host_link::{HostLink, LinkEvent};
use super::{Cx, DeviceId};

/// Values longer than this are not taken from anybody: no node of a device is.
const MAX_VALUE: usize = 1024;

/// Says why a node could not be read.
pub fn why_failed(path: &str, error: Errno) -> String {
    match error {
        Errno::ENOENT => format!("this host has no {path}"),
        _ => format!("{path}: {error}"),
    }
}

/// Turns a node's value into text, without the NUL that some write behind it.
pub fn text(value: &[u8]) -> Option<&str> {
    if value.len() > MAX_VALUE {
        return None;
    }
    let text = core::str::from_utf8(value).ok()?;
    Some(text.trim_matches(|c: char| c == '\0' || c.is_ascii_whitespace()))
}

/// Turns a node's value into a number, written in decimal.
pub fn number<T: FromStr>(value: &[u8]) -> Option<T> {
    text(value)?.parse().ok()
}

/// The nodes of a directory that a [`HostLink`] collected; those that do not exist are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<&'static str, Vec<u8>>);

impl Nodes {
    /// Makes a set of nodes, for tests and defaults.
    pub fn from_pairs(pairs: &[(&'static str, &str)]) -> Self {
        Self(
            pairs
                .iter()
                .map(|&(key, value)| (key, value.as_bytes().to_vec()))
                .collect(),
        )
    }

    /// Returns a node's text.
    pub fn text(&self, key: &str) -> Option<&str> {
        text(self.0.get(key)?)
    }

    /// Returns a node's number.
    pub fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        number(self.0.get(key)?)
    }

    /// Returns whether a feature is offered: the node is there and not 0.
    pub fn flag(&self, key: &str) -> bool {
        self.number::<u64>(key).is_some_and(|value| value != 0)
    }
}

/// Keeps anybody outside from filling the log: each device may write only a limited number of lines.
#[derive(Debug)]
pub struct LogLimit(Cell<u32>);

impl LogLimit {
    /// Allows `lines` lines.
    pub const fn new(lines: u32) -> Self {
        Self(Cell::new(lines))
    }

    /// Writes a warning about `device`, unless there were too many.
    pub fn warn(&self, device: DeviceId, message: core::fmt::Arguments<'_>) {
        let left = self.0.get();
        if left == 0 {
            return;
        }
        self.0.set(left - 1);
        let (class, index) = (device.class.name(), device.index);
        log::warn!("{class}/{index}: {message}");
        if left == 1 {
            log::warn!(
                "{class}/{index}: this was the last complaint about the device that is shown"
            );
        }
    }
}

/// Connects a port of the guest to a device, read from the frontend's node `key`.
pub fn connect_port(
    cx: &mut Cx<'_>,
    link: &GuestLink,
    device: DeviceId,
    key: &str,
) -> Option<xen_abi::Port> {
    let port = xen_abi::Port(link.number(cx.store, key)?);
    cx.ports.connect(port, device).then_some(port)
}
