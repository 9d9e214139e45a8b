//! Sees to it that xenstored knows the domain that the toolstack has built.
//!
//! libxl tells xenstored of each domain (`XS_INTRODUCE`), and ignores the answer.  Now and then, on a busy host,
//! xenstored fails to take the domain's ring or event channel.  Then nobody hears of the domain: xenconsoled
//! gives it no console, for which libxl waits and gives up, and the guest would have no xenstore.  So the
//! answer is looked at here, and xenstored is told once more.

use crate::job::{Error, Result};
use crate::xen::store::Store;

/// If the toolstack has told xenstored of the domain, with whatever answer: that is the last thing that
/// it does before it adds the console.
///
/// # Errors
/// If xenstored does not answer.
pub(super) fn was_tried(store: &dyn Store, domid: u16) -> Result<bool> {
    let console = format!("/local/domain/{domid}/console/port");
    Ok(store.read(&console)?.is_some())
}

/// Has xenstored take the domain if it has not.
///
/// # Errors
/// If xenstored does not take it now either.
pub(super) fn ensure(store: &dyn Store, domid: u16) -> Result<()> {
    if store.is_introduced(domid)? {
        return Ok(());
    }
    log::warn!("xenstored has not taken domain {domid}: it is told of it again");
    let ring = |node: &str| {
        let path = format!("/local/domain/{domid}/store/{node}");
        let value = store.read(&path)?;
        value.ok_or_else(|| Error::Xen(format!("the toolstack has not written {path}")))
    };
    store.introduce(domid, &ring("ring-ref")?, &ring("port")?)
}

#[cfg(test)]
mod tests {
    use super::{ensure, was_tried};
    use crate::xen::store::Store;
    use crate::xen::store::fake::FakeStore;

    #[test]
    fn only_a_domain_that_xenstored_has_not_taken_is_introduced() {
        let store = FakeStore::with(&[
            ("/local/domain/4/store/ring-ref", "1044476"),
            ("/local/domain/4/store/port", "1"),
        ]);
        assert!(!was_tried(&store, 4).unwrap());
        store.write("/local/domain/4/console/port", "2").unwrap();
        assert!(was_tried(&store, 4).unwrap());
        for _ in 0..2 {
            ensure(&store, 4).unwrap();
            let expected = (4, "1044476".to_owned(), "1".to_owned());
            assert_eq!(*store.introduced.lock(), [expected]);
        }
        assert!(ensure(&store, 5).is_err(), "it has no ring");
    }
}
