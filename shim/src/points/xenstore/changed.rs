//! Which of a guest's nodes have changed since somebody looked.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// Names of changed nodes, bounded.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Each name with its place in the order.
    names: BTreeMap<String, usize>,
    bytes: usize,
}

impl Changed {
    /// Names remembered one by one.
    const NAMES: usize = 1024;
    /// Bytes of names remembered one by one.
    const BYTES: usize = 64 << 10;

    /// Remembers a name.  Once there are too many, the root stands for all of them.
    pub(super) fn add(&mut self, name: String) {
        if self.names.contains_key("/") || self.names.contains_key(&name) {
            return;
        }
        if self.names.len() >= Self::NAMES || self.bytes + name.len() > Self::BYTES {
            *self = Self::default();
            self.names.insert(String::from("/"), 0);
            return;
        }
        self.bytes += name.len();
        self.names.insert(name, self.names.len());
    }

    /// Takes the names, in the order in which they changed first.
    pub(super) fn take(&mut self) -> Vec<String> {
        let mut names: Vec<_> = core::mem::take(self).names.into_iter().collect();
        names.sort_by_key(|(_, place)| *place);
        names.into_iter().map(|(name, _)| name).collect()
    }
}
