//! What is promised to domains that are on their way to this host.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::job::{Error, Needs, Result};

/// The promises of one host.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Mutex<BTreeMap<String, Needs>>);

impl Reservations {
    /// Promises a job what it needs, if no other has it, and the memory fits into what is `free`.
    ///
    /// # Errors
    /// [`Error::Refused`] with what stands in the way.
    pub(crate) fn take(&self, job: &str, needs: &Needs, free: u64) -> Result<()> {
        let mut taken = self.0.lock();
        let others = taken.iter().filter(|(other, _)| other.as_str() != job);
        let mut promised = 0_u64;
        for (other, theirs) in others {
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
            promised = promised.saturating_add(theirs.memory_bytes);
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
        taken.insert(job.to_owned(), needs.clone());
        Ok(())
    }

    /// Takes the promise back.
    pub(crate) fn release(&self, job: &str) {
        self.0.lock().remove(job);
    }
}

#[cfg(test)]
mod tests {
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
        let one = needs("one", 600, "/dev/one");
        reservations.take("job1", &one, 1000).unwrap();
        reservations.take("job1", &one, 1000).unwrap();
        let why = |needs| {
            let refused = reservations.take("job2", &needs, 1000);
            refused.unwrap_err().to_string()
        };
        assert!(why(needs("one", 1, "/dev/two")).contains("the name one is reserved for job job1"));
        assert!(why(needs("two", 1, "/dev/one")).contains("the disk /dev/one"));
        assert!(why(needs("two", 401, "/dev/two")).contains("needs 1 MiB"));
        reservations
            .take("job2", &needs("two", 400, "/dev/two"), 1000)
            .unwrap();
        reservations.release("job1");
        reservations.take("job3", &one, 1000).unwrap();
    }
}
