//! Renames a copy that has been handed over to the guest's own name.
//!
//! `xl rename` takes a tenth of a second or more, while the source waits to hear that the guest runs.  This
//! does the same (`libxl__domain_rename`).

use crate::job::{Error, Result};
use crate::xen::store::Store;

/// Renames the domain if its name is `from`; otherwise does nothing.
///
/// # Errors
/// [`Error::Refused`] if another domain is called `to`, or xenstore's error.
pub(super) fn rename(
    store: &dyn Store,
    domid: u16,
    uuid: &str,
    from: &str,
    to: &str,
) -> Result<()> {
    let own = domid.to_string();
    for other in store.list("/local/domain")? {
        let name = store.read(&format!("/local/domain/{other}/name"))?;
        if other != own && name.as_deref() == Some(to) {
            return Err(Error::Refused(format!("domain {other} is called {to}")));
        }
    }
    if store.replace(&format!("/local/domain/{own}/name"), from, to)? {
        store.write(&format!("/vm/{uuid}/name"), to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::rename;
    use crate::xen::store::Store;
    use crate::xen::store::fake::FakeStore;

    fn name(store: &FakeStore, domid: u16) -> Option<String> {
        store.read(&format!("/local/domain/{domid}/name")).unwrap()
    }

    #[test]
    fn a_copy_gets_the_guests_name_unless_another_has_it() {
        let store = FakeStore::with(&[
            ("/local/domain/3/name", "web--arrived"),
            ("/local/domain/4/name", "web"),
            ("/vm/uuid/name", "web--arrived"),
        ]);
        let renamed = rename(&store, 3, "uuid", "web--arrived", "web");
        assert!(renamed.unwrap_err().to_string().contains("domain 4"));
        assert_eq!(name(&store, 3).unwrap(), "web--arrived");
        store
            .write("/local/domain/4/name", "web--migratedaway")
            .unwrap();
        rename(&store, 3, "uuid", "web--arrived", "web").unwrap();
        assert_eq!(name(&store, 3).unwrap(), "web");
        assert_eq!(store.read("/vm/uuid/name").unwrap().unwrap(), "web");
        // Again, and with a name that an operator has given it.
        rename(&store, 3, "uuid", "web--arrived", "web").unwrap();
        store.write("/local/domain/3/name", "mine").unwrap();
        rename(&store, 3, "uuid", "web--arrived", "web").unwrap();
        assert_eq!(name(&store, 3).unwrap(), "mine");
    }
}
