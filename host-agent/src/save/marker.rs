//! Says of a domain of this host that it is a source.
//!
//! When both ends of a move are on one host, two domains have the same UUID, and names come and go; after
//! a crash of the agent nothing else would tell which of them is the copy that may be thrown away.  The
//! marker is in xenstore, outside what guests can read, and lives as long as the domains do: until the
//! host is restarted.

use crate::job::Result;
use crate::xen::store::Store;

fn path(domid: u16) -> String {
    format!("/tool/unmoved/source/{domid}")
}

/// Marks it.
pub(crate) fn set(store: &dyn Store, domid: u16, uuid: &str) -> Result<()> {
    store.write(&path(domid), uuid)
}

/// Takes the mark away, if there is one.
pub(crate) fn clear(store: &dyn Store, domid: u16) -> Result<()> {
    store.remove(&path(domid))
}

/// If the domain of this number and UUID is a source.
pub(crate) fn is_source(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(store.read(&path(domid))?.is_some_and(|found| found == uuid))
}

#[cfg(test)]
mod tests {
    use super::{clear, is_source, set};
    use crate::xen::store::fake::FakeStore;

    #[test]
    fn a_mark_is_of_one_domain_and_can_be_taken_away_twice() {
        let store = FakeStore::default();
        set(&store, 3, "uuid").unwrap();
        assert!(is_source(&store, 3, "uuid").unwrap());
        assert!(!is_source(&store, 3, "other").unwrap());
        assert!(!is_source(&store, 4, "uuid").unwrap());
        clear(&store, 3).unwrap();
        clear(&store, 3).unwrap();
        assert!(!is_source(&store, 3, "uuid").unwrap());
    }
}
