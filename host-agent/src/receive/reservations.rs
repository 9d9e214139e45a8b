//! What is promised to domains that are on their way to this host.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::job::{Error, Needs, Result};

/// What is promised to one job.
#[derive(Debug)]
struct Promise {
    needs: Needs,
    /// The domain has all that it will have.
    is_built: bool,
}

/// The promises of one host.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Mutex<BTreeMap<String, Promise>>);

impl Reservations {
    /// Promises a job what it needs, if no other has it, and the memory fits into what is `free`.  `has` is
    /// what domains have that are being built, by UUID, and was found out before `free`: it is not free any
    /// more, and not promised either.
    ///
    /// # Errors
    /// [`Error::Refused`] with what stands in the way.
    pub(crate) fn take(
        &self,
        job: &str,
        needs: &Needs,
        free: u64,
        has: &BTreeMap<String, u64>,
    ) -> Result<()> {
        let mut taken = self.0.lock();
        let others = taken.iter().filter(|(other, _)| other.as_str() != job);
        let mut promised = 0_u64;
        for (other, promise) in others {
            let theirs = &promise.needs;
            let refuse = |what: String| {
                Err(Error::Refused(format!(
                    "{what} is reserved for job {other} on the destination"
                )))
            };
            if theirs.destination_name == needs.destination_name {
                return refuse(format!("the name {}", needs.destination_name));
            }
            if theirs.uuid == needs.uuid {
                return refuse(format!("the domain {}", needs.uuid));
            }
            if let Some(disk) = needs.disks.iter().find(|disk| theirs.disks.contains(disk)) {
                return refuse(format!("the disk {disk}"));
            }
            if !promise.is_built {
                let has = has.get(&theirs.uuid).copied().unwrap_or_default();
                promised = promised.saturating_add(theirs.memory_bytes.saturating_sub(has));
            }
        }
        let left = free.saturating_sub(promised);
        if needs.memory_bytes > left {
            return Err(Error::Refused(format!(
                "{} needs {} MiB and the destination has {} MiB",
                needs.name,
                needs.memory_bytes.div_ceil(1 << 20),
                left >> 20
            )));
        }
        let promise = Promise {
            needs: needs.clone(),
            is_built: false,
        };
        taken.insert(job.to_owned(), promise);
        Ok(())
    }

    /// The job's domain is built: its memory is not free any more, and is not counted twice.
    pub(crate) fn built(&self, job: &str) {
        if let Some(promise) = self.0.lock().get_mut(job) {
            promise.is_built = true;
        }
    }

    /// Takes the promise back.
    pub(crate) fn release(&self, job: &str) {
        self.0.lock().remove(job);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Reservations;
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

    #[test]
    fn name_disk_and_memory_are_promised_once() {
        let reservations = Reservations::default();
        let none = BTreeMap::new();
        let take = |job: &str, needs: &Needs| reservations.take(job, needs, 1000, &none);
        let one = needs("one", 600, "/dev/one");
        take("job1", &one).unwrap();
        take("job1", &one).unwrap();
        let why = |needs: Needs| take("job2", &needs).unwrap_err().to_string();
        assert!(why(needs("one", 1, "/dev/two")).contains("the name one is reserved for job job1"));
        assert!(why(needs("two", 1, "/dev/one")).contains("the disk /dev/one"));
        assert!(why(needs("two", 401, "/dev/two")).contains("needs 1 MiB"));
        take("job2", &needs("two", 400, "/dev/two")).unwrap();
        reservations.release("job1");
        take("job3", &one).unwrap();
    }

    #[test]
    fn what_a_domain_has_already_is_not_promised_any_more() {
        let reservations = Reservations::default();
        let one = needs("one", 600, "/dev/one");
        reservations
            .take("job1", &one, 1000, &BTreeMap::new())
            .unwrap();
        // Half of it is there, so as much less is free.
        let two = needs("two", 401, "/dev/two");
        let half = BTreeMap::from([(one.uuid.clone(), 300)]);
        assert!(reservations.take("job2", &two, 700, &half).is_err());
        let two = needs("two", 400, "/dev/two");
        assert!(
            reservations
                .take("job2", &two, 700, &BTreeMap::new())
                .is_err()
        );
        reservations.take("job2", &two, 700, &half).unwrap();
        reservations.release("job2");
        reservations.built("job1");
        reservations
            .take("job2", &two, 400, &BTreeMap::new())
            .unwrap();
    }
}
