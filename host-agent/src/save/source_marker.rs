//! Marks a domain of this host as a source, and as asked to suspend.
//!
//! If both ends of a migration are on one host, two domains have the same UUID, and names change.  After a
//! crash of the agent, only the marker tells which of them is the copy that may be discarded.  It is in
//! xenstore, where guests cannot read it, and lives until the host restarts, as the domains do.

use super::names_of;
use crate::job::{Result, Standalone};
use crate::xen::store::Store;

/// Who asked a domain to suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A job of the daemon, which has a journal.
    Job,
    /// An operation without a journal.
    Standalone(Standalone),
}

impl Asker {
    /// The text after the UUID.
    const fn word(self) -> &'static str {
        match self {
            Self::Job => "",
            Self::Standalone(Standalone::Save) => " save",
            Self::Standalone(Standalone::Send) => " send",
        }
    }
}

fn path(domid: u16) -> String {
    format!("/tool/unmoved/source/{domid}")
}

fn asked(domid: u16) -> String {
    format!("/tool/unmoved/asked/{domid}")
}

/// Sets the second marker: the domain is about to be asked to suspend.
pub(crate) fn set_asked(store: &dyn Store, domid: u16, uuid: &str, by: Asker) -> Result<()> {
    store.write(&asked(domid), &format!("{uuid}{}", by.word()))
}

/// Whether it was asked, and the outcome is not recorded.
pub(crate) fn is_asked(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(asker(store, domid, uuid)?.is_some())
}

/// Who asked it, if anyone did and the outcome is not recorded.
pub(crate) fn asker(store: &dyn Store, domid: u16, uuid: &str) -> Result<Option<Asker>> {
    let mark = store.read(&asked(domid))?.unwrap_or_default();
    let all = [
        Asker::Job,
        Asker::Standalone(Standalone::Save),
        Asker::Standalone(Standalone::Send),
    ];
    let is_it = |by: &Asker| mark.strip_prefix(uuid) == Some(by.word());
    Ok(all.into_iter().find(is_it))
}

/// Marks it as a source.
pub(crate) fn set(store: &dyn Store, domid: u16, uuid: &str) -> Result<()> {
    store.write(&path(domid), uuid)
}

/// Removes the markers, if there are any.
pub(crate) fn clear(store: &dyn Store, domid: u16) -> Result<()> {
    store.remove(&asked(domid))?;
    store.remove(&path(domid))
}

/// Whether the domain with this ID and UUID is a source.
pub(crate) fn is_source(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(store.read(&path(domid))?.is_some_and(|found| found == uuid))
}

/// Whether a domain that will have the same name is being built on this host, or complete.
pub(crate) fn is_destination_too(store: &dyn Store, domid: u16, name: &str) -> Result<bool> {
    let [_, coming @ ..] = names_of(name);
    for other in store.list("/local/domain")? {
        let is_other = other != domid.to_string();
        let name = store.read(&format!("/local/domain/{other}/name"))?;
        if is_other && name.is_some_and(|name| coming.contains(&name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::{Asker, asker, clear, is_asked, is_source, set, set_asked};
    use crate::job::Standalone;
    use crate::xen::store::fake::FakeStore;

    #[test]
    fn a_mark_is_of_one_domain_and_can_be_taken_away_twice() {
        let store = FakeStore::default();
        set(&store, 3, "uuid").unwrap();
        assert!(is_source(&store, 3, "uuid").unwrap());
        assert!(!is_source(&store, 3, "other").unwrap());
        assert!(!is_source(&store, 4, "uuid").unwrap());
        assert!(!is_asked(&store, 3, "uuid").unwrap());
        set_asked(&store, 3, "uuid", Asker::Job).unwrap();
        assert!(is_asked(&store, 3, "uuid").unwrap());
        clear(&store, 3).unwrap();
        clear(&store, 3).unwrap();
        assert!(!is_asked(&store, 3, "uuid").unwrap());
        assert!(!is_source(&store, 3, "uuid").unwrap());
    }

    #[test]
    fn a_mark_says_who_has_set_it() {
        let store = FakeStore::default();
        assert_eq!(asker(&store, 3, "uuid").unwrap(), None);
        for by in [
            Asker::Standalone(Standalone::Save),
            Asker::Job,
            Asker::Standalone(Standalone::Send),
        ] {
            set_asked(&store, 3, "uuid", by).unwrap();
            assert_eq!(asker(&store, 3, "uuid").unwrap(), Some(by));
            assert!(is_asked(&store, 3, "uuid").unwrap());
            assert_eq!(asker(&store, 3, "uui").unwrap(), None);
            assert_eq!(asker(&store, 4, "uuid").unwrap(), None);
        }
    }
}
