//! Says of a domain of this host that it is a source, and that it was asked to suspend itself.
//!
//! When both ends of a move are on one host, two domains have the same UUID, and names come and go; after
//! a crash of the agent nothing else would tell which of them is the copy that may be thrown away.  The
//! marker is in xenstore, outside what guests can read, and lives as long as the domains do: until the
//! host is restarted.

use super::names_of;
use crate::job::{Result, Standalone};
use crate::xen::store::Store;

/// Who has asked a domain to suspend itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A job of the daemon, which has a journal.
    Job,
    /// A move without a journal.
    Standalone(Standalone),
}

impl Asker {
    /// What stands behind the UUID.
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

/// It is going to be asked to suspend itself.
pub(crate) fn set_asked(store: &dyn Store, domid: u16, uuid: &str, by: Asker) -> Result<()> {
    store.write(&asked(domid), &format!("{uuid}{}", by.word()))
}

/// If it was asked, and nobody has taken note of what came of it.
pub(crate) fn is_asked(store: &dyn Store, domid: u16, uuid: &str) -> Result<bool> {
    Ok(asker(store, domid, uuid)?.is_some())
}

/// Who has asked it, if anybody has and it is not known what came of it.
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

/// If a domain that will have the same name is under construction on this host, or whole.
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
