//! Says of a domain of this host that it is a source, and that it was asked to suspend itself.
//!
//! When both ends of a move are on one host, two domains have the same UUID, and names come and go; after
//! a crash of the agent nothing else would tell which of them is the copy that may be thrown away.  The
//! marker is in xenstore, outside what guests can read, and lives as long as the domains do: until the
//! host is restarted.

use super::INCOMING;
use crate::job::Result;
use crate::xen::store::Store;

fn path(domid: u16) -> String {
    format!("/tool/unmoved/source/{domid}")
}

fn asked(domid: u16) -> String {
    format!("/tool/unmoved/asked/{domid}")
}

/// It is going to be asked to suspend itself.
pub(crate) fn set_asked(store: &dyn Store, domid: u16, uuid: &str) -> Result<()> {
    store.write(&asked(domid), uuid)
}

/// If it was asked, and nobody has taken note of what came of it.
pub(crate) fn is_asked(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(store
        .read(&asked(domid))?
        .is_some_and(|found| found == uuid))
}

/// Marks it.
pub(crate) fn set(store: &dyn Store, domid: u16, uuid: &str) -> Result<()> {
    store.write(&path(domid), uuid)
}

/// Takes the marks away, if there are any.
pub(crate) fn clear(store: &dyn Store, domid: u16) -> Result<()> {
    store.remove(&asked(domid))?;
    store.remove(&path(domid))
}

/// If the domain of this number and UUID is a source.
pub(crate) fn is_source(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(store.read(&path(domid))?.is_some_and(|found| found == uuid))
}

/// If a domain with the same name is under construction on this host.
pub(crate) fn is_destination_too(store: &dyn Store, domid: u16, name: &str) -> Result<bool> {
    let incoming = format!("{name}{INCOMING}");
    for other in store.list("/local/domain")? {
        let is_other = other != domid.to_string();
        if is_other
            && store.read(&format!("/local/domain/{other}/name"))?.as_ref() == Some(&incoming)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::{clear, is_asked, is_source, set, set_asked};
    use crate::xen::store::fake::FakeStore;

    #[test]
    fn a_mark_is_of_one_domain_and_can_be_taken_away_twice() {
        let store = FakeStore::default();
        set(&store, 3, "uuid").unwrap();
        assert!(is_source(&store, 3, "uuid").unwrap());
        assert!(!is_source(&store, 3, "other").unwrap());
        assert!(!is_source(&store, 4, "uuid").unwrap());
        assert!(!is_asked(&store, 3, "uuid").unwrap());
        set_asked(&store, 3, "uuid").unwrap();
        assert!(is_asked(&store, 3, "uuid").unwrap());
        clear(&store, 3).unwrap();
        clear(&store, 3).unwrap();
        assert!(!is_asked(&store, 3, "uuid").unwrap());
        assert!(!is_source(&store, 3, "uuid").unwrap());
    }
}
