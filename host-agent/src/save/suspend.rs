//! Asks a domain to suspend, and withdraws the request if it does not.
//!
//! Xen has two ways.  A domain may offer an event channel (`device/suspend/event-channel`), whose event means
//! "suspend now"; that is the faster one, because neither end needs a watch.  Otherwise `suspend` is written
//! to `control/shutdown`; the domain empties the node to acknowledge, and then suspends.  A domain that does
//! neither in time is not migrated.  The request is withdrawn in a transaction, because a domain that takes
//! it at the last moment must not be resumed as if it had not (Xen would overwrite a register of a guest that
//! never asked).

use std::time::{Duration, Instant};

use crate::job::{Control, Error, Result};
use crate::xen::store::Store;

/// Longest time until the domain acknowledges.
const UNDERSTAND: Duration = Duration::from_secs(60);
/// Longest time from there until it is suspended.
const SUSPEND: Duration = Duration::from_secs(60);
/// How long a domain that took the request may still suspend afterwards: the longest time that a shim can be
/// told to wait for its disks, and some more.
const LATE: Duration = Duration::from_secs(40);
/// Where xenstored reports domains that stop.
const STOPS: &str = "@releaseDomain";

/// What must be known of a domain while it is asked.
pub(crate) trait Suspendable {
    /// Whether it is suspended.
    ///
    /// # Errors
    /// If it ended in another way, or Xen does not answer.
    fn is_suspended(&self) -> Result<bool>;

    /// Raises the event of a port that the domain has allocated for this one.
    ///
    /// # Errors
    /// If there is no such port.
    fn notify(&self, port: u32) -> Result<()>;
}

/// Suspends a domain; returns when it is suspended.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::Aborted`]; the domain keeps running, without a pending request.  If it had
/// taken the request it may still suspend, and must be resumed then.
pub(crate) fn suspend(
    domid: u16,
    domain: &dyn Suspendable,
    store: &dyn Store,
    control: &Control,
) -> Result<()> {
    if domain.is_suspended()? {
        return Ok(());
    }
    let home = format!("/local/domain/{domid}");
    let port = store.read(&format!("{home}/device/suspend/event-channel"))?;
    match port.and_then(|port| port.parse().ok()) {
        Some(port) => domain.notify(port)?,
        None => request(&format!("{home}/control/shutdown"), domain, store, control)?,
    }
    let mut suspended = || {
        control.check()?;
        domain.is_suspended()
    };
    if store.wait(&[STOPS], Instant::now() + SUSPEND, &mut suspended)? {
        return Ok(());
    }
    Err(Error::TimedOut("the guest's suspend".to_owned()))
}

/// After an attempt that was interrupted, perhaps by the death of an agent: returns when the domain is
/// suspended, or will not suspend any more.  A domain that suspends when nobody looks would stay so for ever.
///
/// # Errors
/// If it ended in another way, or Xen or xenstored does not answer.
pub(crate) fn settle(domid: u16, domain: &dyn Suspendable, store: &dyn Store) -> Result<()> {
    let node = format!("/local/domain/{domid}/control/shutdown");
    if store.replace(&node, "suspend", "")? {
        return Ok(());
    }
    let mut suspended = || domain.is_suspended();
    store.wait(&[STOPS], Instant::now() + LATE, &mut suspended)?;
    Ok(())
}

/// Writes the request, and waits until the domain has taken it or is suspended.
fn request(
    node: &str,
    domain: &dyn Suspendable,
    store: &dyn Store,
    control: &Control,
) -> Result<()> {
    store.write(node, "suspend")?;
    let mut understood = || {
        control.check()?;
        // Whatever it is now, it is not the request.
        let taken = store.read(node)?.as_deref() != Some("suspend");
        Ok(taken || domain.is_suspended()?)
    };
    let waited = store.wait(&[node, STOPS], Instant::now() + UNDERSTAND, &mut understood);
    match waited {
        Ok(true) => Ok(()),
        Ok(false) if !store.replace(node, "suspend", "")? => Ok(()),
        Ok(false) => Err(Error::TimedOut(
            "the guest's answer to the suspend request".to_owned(),
        )),
        Err(error) => {
            store.replace(node, "suspend", "")?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use parking_lot::Mutex;

    use super::{Suspendable, settle, suspend};
    use crate::job::{Control, Error, JobOptions, Result};
    use crate::xen::store::fake::FakeStore;

    const NODE: &str = "/local/domain/7/control/shutdown";

    #[derive(Default)]
    struct Domain {
        suspended: Arc<AtomicBool>,
        notified: Mutex<Vec<u32>>,
        obeys: bool,
    }

    impl Suspendable for Domain {
        fn is_suspended(&self) -> Result<bool> {
            Ok(self.suspended.load(Ordering::Relaxed))
        }

        fn notify(&self, port: u32) -> Result<()> {
            self.notified.lock().push(port);
            self.suspended.store(self.obeys, Ordering::Relaxed);
            Ok(())
        }
    }

    fn control() -> Control {
        Control::new(JobOptions::default())
    }

    #[test]
    fn a_domain_with_an_event_channel_is_asked_through_it() {
        let store = FakeStore::with(&[("/local/domain/7/device/suspend/event-channel", "12")]);
        let domain = Domain {
            obeys: true,
            ..Domain::default()
        };
        suspend(7, &domain, &store, &control()).unwrap();
        assert_eq!(*domain.notified.lock(), [12]);
        assert!(!store.nodes.lock().contains_key(NODE));
    }

    #[test]
    fn a_domain_that_takes_the_request_is_waited_for() {
        let store = FakeStore::with(&[("/local/domain/7/device/suspend/event-channel", "")]);
        let domain = Domain::default();
        let suspended = domain.suspended.clone();
        store.later(|nodes| assert_eq!(nodes[NODE], "suspend"));
        store.later(|nodes| drop(nodes.insert(NODE.to_owned(), String::new())));
        store.later(move |_| suspended.store(true, Ordering::Relaxed));
        suspend(7, &domain, &store, &control()).unwrap();
    }

    #[test]
    fn the_request_is_taken_back_from_a_domain_that_is_deaf() {
        let store = FakeStore::default();
        let error = suspend(7, &Domain::default(), &store, &control()).unwrap_err();
        assert!(matches!(error, Error::TimedOut(_)), "{error}");
        assert_eq!(store.nodes.lock()[NODE], "");
    }

    #[test]
    fn a_domain_that_suspends_itself_late_is_waited_for() {
        let store = FakeStore::default();
        let domain = Domain::default();
        let suspended = domain.suspended.clone();
        store.later(|_| {});
        store.later(move |_| suspended.store(true, Ordering::Relaxed));
        settle(7, &domain, &store).unwrap();
        assert!(domain.is_suspended().unwrap());
    }

    #[test]
    fn a_request_that_a_dead_agent_has_left_is_taken_back() {
        let store = FakeStore::with(&[(NODE, "suspend")]);
        settle(7, &Domain::default(), &store).unwrap();
        assert_eq!(store.nodes.lock()[NODE], "");
    }

    #[test]
    fn an_abort_takes_the_request_back() {
        let store = FakeStore::default();
        let control = Arc::new(control());
        let other = control.clone();
        store.later(move |_| assert!(other.abort()));
        let error = suspend(7, &Domain::default(), &store, &control).unwrap_err();
        assert!(matches!(error, Error::Aborted), "{error}");
        assert_eq!(store.nodes.lock()[NODE], "");
    }
}
