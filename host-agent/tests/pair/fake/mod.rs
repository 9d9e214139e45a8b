//! Hosts in memory.

mod destination;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use unmoved::job::{
    Chunk, Destination, DomainEntry, Error, FreeMemory, Host, HostFacts, MemoryLimits, Needs,
    PAGE_SIZE, Presence, Reservations, Result, Source, digest,
};

use unmoved::storage::Storage;

use destination::FakeDestination;
use source::FakeSource;

const PAGES: u64 = 300;
/// Memory of one guest.
const MEMORY: u64 = PAGES * PAGE_SIZE as u64;
/// Guests for which a host has memory, unless a test says otherwise.
const GUESTS: u64 = 10;

type Memory = BTreeMap<u64, Vec<u8>>;

#[derive(Clone)]
struct Domain {
    name: String,
    presence: Presence,
    memory: Memory,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<String, Domain>,
    /// Guests whose writes a run of the agent that is dead has had recorded.
    watched: BTreeSet<String>,
    holds_live: bool,
    fails_to_build: bool,
    fails_to_fill: bool,
    is_stuck: bool,
    holds_build: bool,
    is_deaf: bool,
    hides: bool,
    holds_rest: bool,
    holds_unpause: bool,
    stumbles: u32,
    /// What tells the storage behind a disk.
    storage: BTreeMap<String, String>,
    /// A guest's disks, and its kernel.
    disks: BTreeMap<String, Vec<String>>,
    /// The host has memory for so many guests.
    guests: Option<u64>,
    kernels: BTreeMap<String, String>,
    /// Bytes that get into frames as they arrive.
    garbled: BTreeMap<u64, u8>,
    /// What was told of guests that come, to be compared.
    told: BTreeMap<String, Vec<Chunk>>,
    compared: BTreeSet<String>,
}

/// Those of the memory of every guest here.
pub(super) const LIMITS: MemoryLimits = MemoryLimits {
    target_kib: 131_072,
    most_pages: 33_024,
};

/// Digests of all of a guest's memory.
fn chunks(memory: &Memory) -> Vec<Chunk> {
    let mut chunks: Vec<(Chunk, Vec<u8>)> = Vec::new();
    for (frame, page) in memory {
        let first = frame / Chunk::FRAMES * Chunk::FRAMES;
        if chunks.last().is_none_or(|(last, _)| last.first != first) {
            let new = Chunk {
                first,
                ..Chunk::default()
            };
            chunks.push((new, Vec::new()));
        }
        let (chunk, pages) = chunks.last_mut().unwrap();
        chunk.count(*frame);
        pages.extend(page);
    }
    let made = |(chunk, pages): (Chunk, Vec<u8>)| Chunk {
        digest: digest(&pages),
        ..chunk
    };
    chunks.into_iter().map(made).collect()
}

/// A guest's configuration as the toolstack has it.
pub fn config(uuid: &str, disks: &[String], kernel: Option<&str>) -> Vec<u8> {
    let disks: Vec<_> = disks
        .iter()
        .map(|disk| json!({ "pdev_path": disk, "readwrite": 1 }))
        .collect();
    let config = json!({
        "c_info": { "type": "pvh", "name": "guest", "uuid": uuid },
        "b_info": { "kernel": kernel },
        "disks": disks,
    });
    format!("{config}\0").into_bytes()
}

impl State {
    /// What the guests here leave of the host's memory; one that is being built has all of its own already.
    fn free_memory(&self) -> FreeMemory {
        let guests = self.guests.unwrap_or(GUESTS);
        let here = self.domains.len() as u64;
        let coming = self.domains.iter();
        let coming = coming.filter(|(_, domain)| domain.presence == Presence::Partial);
        FreeMemory {
            bytes: guests.saturating_sub(here) * MEMORY,
            being_built: coming.map(|(uuid, _)| (uuid.clone(), MEMORY)).collect(),
        }
    }

    /// Whether this time it works.
    fn works(&mut self) -> Result<()> {
        match self.stumbles.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.stumbles = left;
                Err(Error::Xen("xenstored has no time".to_owned()))
            }
        }
    }
}

/// A host; its clones are the same.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
}

impl Fake {
    /// A running guest with some memory.
    pub fn add(&self, name: &str, uuid: &str) -> Memory {
        self.put(name, uuid, Presence::Running);
        let page = |pfn: u64| match pfn % 3 {
            0 => vec![0; PAGE_SIZE],
            _ => vec![u8::try_from(pfn % 250).unwrap() + 1; PAGE_SIZE],
        };
        let memory: Memory = (0..PAGES).map(|pfn| (pfn, page(pfn))).collect();
        let mut state = self.state.lock();
        state.domains.get_mut(uuid).unwrap().memory = memory.clone();
        memory
    }

    pub fn put(&self, name: &str, uuid: &str, presence: Presence) {
        let domain = Domain {
            name: name.to_owned(),
            presence,
            memory: Memory::new(),
        };
        self.state.lock().domains.insert(uuid.to_owned(), domain);
    }

    pub fn set(&self, uuid: &str, presence: Presence) {
        self.state.lock().domains.get_mut(uuid).unwrap().presence = presence;
    }

    pub fn remove(&self, uuid: &str) {
        self.state.lock().domains.remove(uuid);
    }

    pub fn presence(&self, uuid: &str) -> Presence {
        let state = self.state.lock();
        let found = state.domains.get(uuid);
        found.map_or(Presence::Absent, |domain| domain.presence)
    }

    pub fn memory(&self, uuid: &str) -> Memory {
        self.state.lock().domains[uuid].memory.clone()
    }

    pub fn name(&self, uuid: &str) -> String {
        self.state.lock().domains[uuid].name.clone()
    }

    /// An agent has died while it watched the guest.
    pub fn leave_watched(&self, uuid: &str) {
        self.state.lock().watched.insert(uuid.to_owned());
    }

    pub fn is_watched(&self, uuid: &str) -> bool {
        self.state.lock().watched.contains(uuid)
    }

    /// Copying with the guest running takes until this is undone.
    pub fn hold_live(&self, holds: bool) {
        self.state.lock().holds_live = holds;
    }

    pub fn fail_to_build(&self) {
        self.state.lock().fails_to_build = true;
    }

    /// The toolstack lives, but takes no pages any more until it is killed.
    pub fn get_stuck(&self) {
        self.state.lock().is_stuck = true;
    }

    /// Building takes until this is undone.
    pub fn hold_build(&self, holds: bool) {
        self.state.lock().holds_build = holds;
    }

    /// Building does not heed that the job is given up: the toolstack has all that it needs.
    pub fn be_deaf(&self) {
        self.state.lock().is_deaf = true;
    }

    /// What there is of a guest that came cannot be found out until this is undone.
    pub fn hide(&self, hides: bool) {
        self.state.lock().hides = hides;
    }

    /// Copying with the guest suspended takes until this is undone.
    pub fn hold_rest(&self, holds: bool) {
        self.state.lock().holds_rest = holds;
    }

    /// Letting a guest run takes until this is undone.
    pub fn hold_unpause(&self, holds: bool) {
        self.state.lock().holds_unpause = holds;
    }

    /// So many times a guest cannot be resumed, or a copy not thrown away.
    pub fn stumble(&self, times: u32) {
        self.state.lock().stumbles = times;
    }

    /// This is what a disk's name leads to here.
    pub fn attach(&self, disk: &str, identity: &str) {
        let mut state = self.state.lock();
        state.storage.insert(disk.to_owned(), identity.to_owned());
    }

    /// The host has memory for so many guests.
    pub fn shrink(&self, guests: u64) {
        self.state.lock().guests = Some(guests);
    }

    /// A guest has this disk.
    pub fn give(&self, uuid: &str, disk: &str) {
        let mut state = self.state.lock();
        let disks = state.disks.entry(uuid.to_owned()).or_default();
        disks.push(disk.to_owned());
    }

    /// A guest's configuration names this kernel.
    pub fn boot(&self, uuid: &str, kernel: &str) {
        let mut state = self.state.lock();
        state.kernels.insert(uuid.to_owned(), kernel.to_owned());
    }

    /// Whenever this frame arrives, its first byte becomes that.
    pub fn garble(&self, frame: u64, byte: Option<u8>) {
        let mut state = self.state.lock();
        match byte {
            Some(byte) => state.garbled.insert(frame, byte),
            None => state.garbled.remove(&frame),
        };
    }

    /// A copy was found to be the guest.
    pub fn was_compared(&self, uuid: &str) -> bool {
        self.state.lock().compared.contains(uuid)
    }

    /// With the first pages that arrive.
    pub fn fail_to_fill(&self) {
        self.state.lock().fails_to_fill = true;
    }
}

/// The test keeps the host, and each run of a daemon a handle with reservations of its own.
pub struct Handle {
    host: Arc<Fake>,
    reservations: Arc<Reservations>,
}

impl Handle {
    pub fn new(host: &Arc<Fake>) -> Arc<Self> {
        Arc::new(Self {
            host: host.clone(),
            reservations: Arc::default(),
        })
    }
}

impl Host for Handle {
    fn facts(&self) -> Result<HostFacts> {
        Ok(HostFacts {
            xen_version: "4.17.0".to_owned(),
            free_memory_bytes: self.host.state.lock().free_memory().bytes,
            cpus: 1,
            stream_version: 3,
        })
    }

    fn storage(&self, disk: &str) -> Storage {
        Storage {
            disk: disk.to_owned(),
            identity: self.host.state.lock().storage.get(disk).cloned(),
            bytes: Some(1 << 30),
            is_vouched: false,
        }
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    fn domains(&self) -> Result<Vec<DomainEntry>> {
        let state = self.host.state.lock();
        let entry = |(uuid, domain): (&String, &Domain)| DomainEntry {
            name: domain.name.clone(),
            domid: 1,
            uuid: uuid.clone(),
            memory_bytes: MEMORY,
            vcpus: 1,
            state: match domain.presence {
                Presence::Running => "running",
                _ => "paused",
            }
            .to_owned(),
        };
        Ok(state.domains.iter().map(entry).collect())
    }

    fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    fn source(&self, domain: &str) -> Result<Box<dyn Source>> {
        self.host.source(domain)
    }

    fn destination(&self) -> Result<Box<dyn Destination>> {
        Ok(Box::new(FakeDestination {
            host: self.host.clone(),
            reservations: self.reservations.clone(),
            job: String::new(),
            has_reserved: false,
            needs: None,
            stop: None,
        }))
    }

    fn find_source(&self, needs: &Needs) -> Result<Box<dyn Source>> {
        Ok(Box::new(FakeSource {
            host: self.host.clone(),
            needs: needs.clone(),
        }))
    }

    fn find_destination(&self, job: &str, needs: &Needs) -> Result<Box<dyn Destination>> {
        Ok(Box::new(FakeDestination {
            host: self.host.clone(),
            reservations: self.reservations.clone(),
            job: job.to_owned(),
            has_reserved: false,
            needs: Some(needs.clone()),
            stop: None,
        }))
    }
}

impl Fake {
    pub fn source(self: &Arc<Self>, name: &str) -> Result<Box<dyn Source>> {
        let state = self.state.lock();
        let mut all = state.domains.iter();
        let found = all.find(|(_, domain)| domain.name == name);
        let (uuid, _) = found.ok_or_else(|| Error::Refused(format!("no domain {name}")))?;
        let needs = Needs {
            name: name.to_owned(),
            destination_name: name.to_owned(),
            uuid: uuid.clone(),
            memory_bytes: MEMORY,
            xen_version: "4.17.0".to_owned(),
            config: config(
                uuid,
                state.disks.get(uuid).map_or(&[], Vec::as_slice),
                state.kernels.get(uuid).map(String::as_str),
            ),
            disks: state.disks.get(uuid).cloned().unwrap_or_default(),
            ..Needs::default()
        };
        Ok(Box::new(FakeSource {
            host: self.clone(),
            needs,
        }))
    }
}
