//! Marks a domain of this host as a job's copy.
//!
//! While a domain arrives, its name tells that.  After the hand-over it has the guest's own name and UUID,
//! and so has a domain that reached this host in another way while the agent did not run.  The agent must
//! neither unpause nor discard such a domain.  The marker is set before the domain gets the name of a
//! complete copy.  It is in xenstore, where guests cannot read it, and ends with a restart of the host, as
//! the domains do.

use crate::job::Result;
use crate::xen::store::Store;

const FOLDER: &str = "/tool/unmoved/copy";

fn path(domid: &str) -> String {
    format!("{FOLDER}/{domid}")
}

/// Sets the marker, and removes those of domains that are gone.
pub(super) fn set(store: &dyn Store, domid: u16, uuid: &str, job: &str) -> Result<()> {
    for old in store.list(FOLDER)? {
        if store.read(&format!("/local/domain/{old}/name"))?.is_none() {
            store.remove(&path(&old))?;
        }
    }
    store.write(&path(&domid.to_string()), &format!("{uuid} {job}"))
}

/// Whether the domain with this ID and UUID is the job's copy.
pub(super) fn is_set(store: &dyn Store, domid: u16, uuid: &str, job: &str) -> Result<bool> {
    let mark = store.read(&path(&domid.to_string()))?;
    Ok(mark.is_some_and(|mark| mark == format!("{uuid} {job}")))
}

#[cfg(test)]
mod tests {
    use super::{is_set, path, set};
    use crate::xen::store::Store;
    use crate::xen::store::fake::FakeStore;

    #[test]
    fn a_mark_is_of_one_domain_and_job_and_goes_when_the_domain_has_gone() {
        let store = FakeStore::default();
        store.write("/local/domain/3/name", "web").unwrap();
        store.write("/local/domain/4/name", "db").unwrap();
        set(&store, 3, "uuid", "job").unwrap();
        assert!(is_set(&store, 3, "uuid", "job").unwrap());
        assert!(!is_set(&store, 3, "uuid", "other").unwrap());
        assert!(!is_set(&store, 3, "other", "job").unwrap());
        assert!(!is_set(&store, 4, "uuid", "job").unwrap());
        set(&store, 4, "more", "job").unwrap();
        assert!(is_set(&store, 3, "uuid", "job").unwrap());
        store.remove("/local/domain/3/name").unwrap();
        set(&store, 5, "new", "job").unwrap();
        assert_eq!(store.read(&path("3")).unwrap(), None);
        assert!(is_set(&store, 4, "more", "job").unwrap());
    }
}
