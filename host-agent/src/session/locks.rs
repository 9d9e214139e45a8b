//! Which resources of a destination the sessions under way have locked.
//!
//! From the first step on: a second migration into the same name, UUID, disks or memory is refused at
//! once, not when the toolstack stumbles over it minutes later.

use std::collections::BTreeMap;

use super::SessionId;
use crate::job::Needs;

/// What one session holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    name: String,
    uuid: String,
    memory_bytes: u64,
    /// What of it the domain has already: it is not free any more, and is not counted twice.
    has_bytes: u64,
    disks: Vec<String>,
}

impl From<&Needs> for Resources {
    fn from(needs: &Needs) -> Self {
        Self {
            name: needs.destination_name.clone(),
            uuid: needs.uuid.clone(),
            memory_bytes: needs.memory_bytes,
            has_bytes: 0,
            disks: needs.disks.clone(),
        }
    }
}

/// All locks of a host.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    held: BTreeMap<SessionId, Resources>,
}

impl Locks {
    /// Locks what a session needs; again for the same session is no mistake.
    ///
    /// # Errors
    /// Which session holds what.
    pub fn take(
        &mut self,
        session: SessionId,
        wanted: Resources,
        free_memory_bytes: u64,
    ) -> Result<(), String> {
        let others = || self.held.iter().filter(|(other, _)| **other != session);
        for (other, held) in others() {
            if held.name == wanted.name {
                return Err(format!("session {other} brings a {} already", held.name));
            }
            if held.uuid == wanted.uuid {
                return Err(format!(
                    "session {other} brings the domain {} already",
                    held.uuid
                ));
            }
            if let Some(disk) = held.disks.iter().find(|disk| wanted.disks.contains(disk)) {
                return Err(format!("session {other} has locked the disk {disk}"));
            }
        }
        let reserved = others()
            .map(|(_, held)| held.memory_bytes.saturating_sub(held.has_bytes))
            .fold(0, u64::saturating_add);
        let needed = reserved.saturating_add(wanted.memory_bytes);
        if needed > free_memory_bytes {
            return Err(format!(
                "not enough memory: {} KiB needed, {} KiB free, of which {} KiB are reserved by other sessions",
                wanted.memory_bytes / 1024,
                free_memory_bytes / 1024,
                reserved / 1024,
            ));
        }
        self.held.insert(session, wanted);
        Ok(())
    }

    /// What the domains have that are being built, by UUID.  To be asked for before how much is free, lest
    /// what one gets meanwhile is promised to somebody else.
    pub fn reckon(&mut self, has: impl Fn(&str) -> u64) {
        for held in self.held.values_mut() {
            held.has_bytes = has(&held.uuid);
        }
    }

    /// The domain of this session is built: its memory is not free any more, and is not counted twice.
    pub fn built(&mut self, session: SessionId) {
        if let Some(held) = self.held.get_mut(&session) {
            held.memory_bytes = 0;
        }
    }

    /// Gives up what a session holds, if anything.
    pub fn give_up(&mut self, session: SessionId) {
        self.held.remove(&session);
    }

    /// If the session holds anything.
    #[must_use]
    pub fn is_held_by(&self, session: SessionId) -> bool {
        self.held.contains_key(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::{Locks, Resources};
    use crate::session::SessionId;

    const A: SessionId = SessionId::new([1; 16]);
    const B: SessionId = SessionId::new([2; 16]);

    fn guest(name: &str, uuid: &str, disk: &str) -> Resources {
        Resources {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            memory_bytes: 100,
            has_bytes: 0,
            disks: vec![disk.to_owned()],
        }
    }

    #[test]
    fn the_same_name_uuid_or_disk_is_refused_and_the_others_are_not() {
        let mut locks = Locks::default();
        locks.take(A, guest("a", "1", "/dev/a"), 1000).unwrap();
        let refused = |other| locks.clone().take(B, other, 1000).unwrap_err();
        assert!(refused(guest("a", "2", "/dev/b")).contains("brings a a"));
        assert!(refused(guest("b", "1", "/dev/b")).contains("domain 1"));
        assert!(refused(guest("b", "2", "/dev/a")).contains("/dev/a"));
        locks.take(B, guest("b", "2", "/dev/b"), 1000).unwrap();
    }

    #[test]
    fn memory_that_is_reserved_is_not_free() {
        let mut locks = Locks::default();
        locks.take(A, guest("a", "1", "/dev/a"), 150).unwrap();
        let b = guest("b", "2", "/dev/b");
        assert!(locks.take(B, b.clone(), 150).is_err());
        assert!(!locks.is_held_by(B));
        locks.built(A);
        locks.take(B, b, 150).unwrap();
    }

    #[test]
    fn what_a_domain_has_already_is_not_promised_any_more() {
        let mut locks = Locks::default();
        locks.take(A, guest("a", "1", "/dev/a"), 250).unwrap();
        // 60 of 100 are there, so as much less is free.
        locks.reckon(|uuid| if uuid == "1" { 60 } else { 0 });
        let b = guest("b", "2", "/dev/b");
        locks.clone().take(B, b.clone(), 250 - 60).unwrap();
        assert!(locks.clone().take(B, b.clone(), 139).is_err());
        // It is destroyed: all is free again, and promised.
        locks.reckon(|_| 0);
        assert!(locks.clone().take(B, b.clone(), 199).is_err());
        // An overhead that was not reckoned with makes nobody else's memory.
        locks.reckon(|_| 1000);
        assert!(locks.take(B, b, 99).is_err());
    }

    #[test]
    fn a_session_may_ask_twice() {
        let mut locks = Locks::default();
        locks.take(A, guest("a", "1", "/dev/a"), 150).unwrap();
        locks.take(A, guest("a", "1", "/dev/a"), 150).unwrap();
    }
}
