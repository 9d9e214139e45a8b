//! Says of a domain of this host that it is the copy that a job has made.
//!
//! While a domain comes its name tells that.  When it has been handed over it has the guest's own name and
//! UUID, and so would have one that reached this host in another way while the agent did not run: that one is
//! nobody's to unpause or throw away.  The mark is made before the domain gets the name of one that is whole; it
//! is in xenstore, outside what guests can read, and ends with the host's run, as the domains do.

use crate::job::Result;
use crate::xen::store::Store;

const FOLDER: &str = "/tool/unmoved/copy";

fn path(domid: &str) -> String {
    format!("{FOLDER}/{domid}")
}

/// Marks it; takes away the marks of domains that are gone.
pub(super) fn set(store: &dyn Store, domid: u16, uuid: &str, job: &str) -> Result<()> {
    for old in store.list(FOLDER)? {
        if store.read(&format!("/local/domain/{old}/name"))?.is_none() {
            store.remove(&path(&old))?;
        }
    }
    store.write(&path(&domid.to_string()), &format!("{uuid} {job}"))
}

/// If the domain of this number and UUID is the job's copy.
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
