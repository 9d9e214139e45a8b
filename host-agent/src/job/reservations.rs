//! What domains on their way to this host hold of it: names, UUIDs, disks and memory.
//!
//! Each host has one table.  Migrations and restores both reserve here, so a second domain with the same
//! name, UUID or disk, or without the memory for it, is refused at once, and not by the toolstack minutes
//! later.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Error, Needs, Result};

/// Memory of a host that new domains can have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreeMemory {
    /// Bytes that no domain has.
    pub bytes: u64,
    /// Bytes that domains under construction have, by UUID.  Measured before `bytes`: memory that moves in
    /// between then counts as reserved *and* as taken, and is given to nobody else.
    pub being_built: BTreeMap<String, u64>,
}

/// What one job holds.
#[derive(Debug)]
struct Reservation {
    needs: Needs,
    /// The domain has all its memory.
    is_built: bool,
}

/// The reservations of one host, by job.
#[derive(Debug, Default)]
pub struct Reservations(Mutex<BTreeMap<String, Reservation>>);

impl Reservations {
    /// Reserves what a job needs.  May be repeated by the same job.
    ///
    /// # Errors
    /// [`Error::Refused`] if another job holds the name, the UUID or a disk, or if memory is short.
    pub fn take(&self, job: &str, needs: &Needs, free: &FreeMemory) -> Result<()> {
        let mut all = self.0.lock();
        let others = || all.iter().filter(|(other, _)| other.as_str() != job);
        for (other, held) in others() {
            if let Some(what) = conflict(&held.needs, needs) {
                return Err(Error::Refused(format!(
                    "{what} is reserved for job {other} on the destination"
                )));
            }
        }
        let reserved = others()
            .filter(|(_, held)| !held.is_built)
            .map(|(_, held)| {
                let has = free.being_built.get(&held.needs.uuid).copied();
                held.needs
                    .memory_bytes
                    .saturating_sub(has.unwrap_or_default())
            })
            .fold(0, u64::saturating_add);
        if needs.memory_bytes > free.bytes.saturating_sub(reserved) {
            return Err(Error::Refused(format!(
                "not enough memory: {} needs {} KiB, and the destination has {} KiB free, of which {} KiB are \
                 reserved for other jobs",
                needs.name,
                needs.memory_bytes / 1024,
                free.bytes / 1024,
                reserved / 1024,
            )));
        }
        all.insert(job.to_owned(), Reservation::of(needs));
        Ok(())
    }

    /// Reserves for a job that another run of the agent began.  Memory is not checked, because the domain may
    /// have it already.  If another job holds the name, the UUID or a disk, nothing is reserved: this job
    /// only ends what it began.
    pub fn restore(&self, job: &str, needs: &Needs) {
        let mut all = self.0.lock();
        let mut others = all.iter().filter(|(other, _)| other.as_str() != job);
        let taken = others.find_map(|(other, held)| Some((other, conflict(&held.needs, needs)?)));
        if let Some((other, what)) = taken {
            log::warn!("job {job}: {what} is reserved for job {other}");
            return;
        }
        all.insert(job.to_owned(), Reservation::of(needs));
    }

    /// Counts the job's memory as taken: its domain is built.
    pub fn built(&self, job: &str) {
        if let Some(held) = self.0.lock().get_mut(job) {
            held.is_built = true;
        }
    }

    /// Ends the job's reservation, if there is one.
    pub fn release(&self, job: &str) {
        self.0.lock().remove(job);
    }
}

impl Reservation {
    fn of(needs: &Needs) -> Self {
        Self {
            needs: needs.clone(),
            is_built: false,
        }
    }
}

/// What both want and only one can have.
fn conflict(held: &Needs, wanted: &Needs) -> Option<String> {
    if held.destination_name == wanted.destination_name {
        return Some(format!("the name {}", wanted.destination_name));
    }
    if held.uuid == wanted.uuid {
        return Some(format!("the domain {}", wanted.uuid));
    }
    let mut disks = wanted.disks.iter();
    let disk = disks.find(|disk| held.disks.contains(disk))?;
    Some(format!("the disk {disk}"))
}

#[cfg(test)]
mod tests {
    use super::{FreeMemory, Reservations};
    use crate::job::Needs;

    fn needs(name: &str, memory_bytes: u64, disk: &str) -> Needs {
        Needs {
            name: name.to_owned(),
            destination_name: name.to_owned(),
            uuid: format!("uuid of {name}"),
            memory_bytes,
            disks: vec![disk.to_owned()],
            ..Needs::default()
        }
    }

    fn free(bytes: u64) -> FreeMemory {
        FreeMemory {
            bytes,
            ..FreeMemory::default()
        }
    }

    #[test]
    fn the_same_name_uuid_or_disk_is_refused_and_others_are_not() {
        let reservations = Reservations::default();
        let take = |job: &str, needs: &Needs| reservations.take(job, needs, &free(1000));
        let one = needs("one", 600, "/dev/one");
        take("job1", &one).unwrap();
        // A job may ask twice.
        take("job1", &one).unwrap();
        let why = |needs: Needs| take("job2", &needs).unwrap_err().to_string();
        assert!(why(needs("one", 1, "/dev/two")).contains("the name one is reserved for job job1"));
        assert!(why(needs("two", 1, "/dev/one")).contains("the disk /dev/one"));
        let same = Needs {
            uuid: one.uuid.clone(),
            ..needs("two", 1, "/dev/two")
        };
        assert!(why(same).contains("the domain uuid of one"));
        assert!(why(needs("two", 401, "/dev/two")).contains("not enough memory: two needs"));
        take("job2", &needs("two", 400, "/dev/two")).unwrap();
        reservations.release("job1");
        take("job3", &one).unwrap();
    }

    #[test]
    fn memory_that_a_domain_has_already_is_not_reserved_any_more() {
        let reservations = Reservations::default();
        let one = needs("one", 600, "/dev/one");
        reservations.take("job1", &one, &free(1000)).unwrap();
        // Half of it is there, so as much less is free.
        let half = |bytes| FreeMemory {
            bytes,
            being_built: [(one.uuid.clone(), 300)].into(),
        };
        let two = |bytes| needs("two", bytes, "/dev/two");
        let take = |needs: &Needs, free: &FreeMemory| reservations.take("job2", needs, free);
        assert!(take(&two(401), &half(700)).is_err());
        assert!(take(&two(400), &free(700)).is_err());
        take(&two(400), &half(700)).unwrap();
        // An overhead that was not reckoned with makes nobody else's memory.
        let more = FreeMemory {
            bytes: 399,
            being_built: [(one.uuid.clone(), 1000)].into(),
        };
        assert!(take(&two(400), &more).is_err());
        reservations.built("job1");
        take(&two(400), &free(400)).unwrap();
    }

    #[test]
    fn what_another_run_reserved_is_restored_unless_somebody_else_has_it() {
        let reservations = Reservations::default();
        let one = needs("one", 600, "/dev/one");
        reservations.restore("old", &one);
        let two = needs("two", 401, "/dev/two");
        assert!(reservations.take("new", &two, &free(1000)).is_err());
        reservations.restore("older", &one);
        reservations.release("old");
        reservations.take("new", &two, &free(401)).unwrap();
    }
}
