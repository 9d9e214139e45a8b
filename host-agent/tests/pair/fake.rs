//! Hosts in memory, and a pair of daemons on them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use event_listener::Listener;
use parking_lot::Mutex;
use unmoved::config::{Config, Peer, Tls};
use unmoved::daemon::Daemon;
use unmoved::job::{
    Batch, Control, Copied, Destination, DomainEntry, Error, Estimate, Host, HostFacts, JobOptions,
    Needs, PAGE_SIZE, Prepared, Presence, Result, Sink, Source,
};
use unmoved::pki;

const PAGES: u64 = 300;
/// Memory of one guest, as the locks count it.
const MEMORY: u64 = PAGES * PAGE_SIZE as u64;

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
    holds_live: bool,
    fails_to_build: bool,
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

    /// Copying with the guest running takes until this is undone.
    pub fn hold_live(&self, holds: bool) {
        self.state.lock().holds_live = holds;
    }

    pub fn fail_to_build(&self) {
        self.state.lock().fails_to_build = true;
    }
}

/// The test keeps one handle, the daemon another.
pub struct Handle(pub Arc<Fake>);

struct FakeSource {
    host: Arc<Fake>,
    needs: Needs,
}

struct FakeDestination {
    host: Arc<Fake>,
    needs: Option<Needs>,
}

struct FakeSink {
    host: Arc<Fake>,
    uuid: String,
}

impl Host for Handle {
    fn facts(&self) -> Result<HostFacts> {
        Ok(HostFacts {
            xen_version: "4.17.0".to_owned(),
            free_memory_bytes: 10 * MEMORY,
            cpus: 1,
            stream_version: 3,
        })
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    fn domains(&self) -> Result<Vec<DomainEntry>> {
        Ok(Vec::new())
    }

    fn source(&self, domain: &str) -> Result<Box<dyn Source>> {
        self.0.source(domain)
    }

    fn destination(&self) -> Result<Box<dyn Destination>> {
        Ok(Box::new(FakeDestination {
            host: self.0.clone(),
            needs: None,
        }))
    }

    fn find_source(&self, needs: &Needs) -> Result<Box<dyn Source>> {
        Ok(Box::new(FakeSource {
            host: self.0.clone(),
            needs: needs.clone(),
        }))
    }

    fn find_destination(&self, _: &str, needs: &Needs) -> Result<Box<dyn Destination>> {
        Ok(Box::new(FakeDestination {
            host: self.0.clone(),
            needs: Some(needs.clone()),
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
            ..Needs::default()
        };
        Ok(Box::new(FakeSource {
            host: self.clone(),
            needs,
        }))
    }
}

impl FakeSource {
    fn send(&self, sink: &dyn Sink, control: &Control) -> Result<()> {
        let memory = self.host.memory(&self.needs.uuid);
        let mut batch = Batch::default();
        for run in memory.into_iter().collect::<Vec<_>>().chunks(64) {
            control.check()?;
            batch.clear();
            for (pfn, page) in run {
                batch.words.push(*pfn);
                batch.data.extend(page);
            }
            sink.pages(&mut batch)?;
        }
        sink.barrier()
    }
}

impl Source for FakeSource {
    fn uuid(&self) -> &str {
        &self.needs.uuid
    }

    fn prepare(&mut self, _: &JobOptions, _: &Control) -> Result<Prepared> {
        Ok(Prepared {
            needs: self.needs.clone(),
            estimate: Estimate {
                pages: PAGES,
                zero_share: 0.3,
                compressed_share: 0.5,
                compress_bytes_per_second: 500e6,
                read_bytes_per_second: 1e9,
                dirty_pages_per_second: 10.0,
                hot_pages: 5,
                constant_bytes: 100,
            },
        })
    }

    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()> {
        sink.bytes(b"head")?;
        self.send(sink, control)?;
        while self.host.state.lock().holds_live {
            let listener = control.listen();
            control.check()?;
            // Undone by another thread that does not know of the job.
            listener.wait_timeout(std::time::Duration::from_millis(20));
        }
        Ok(())
    }

    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied> {
        self.host.set(&self.needs.uuid, Presence::Paused);
        self.send(sink, control)?;
        sink.bytes(b"tail")?;
        sink.barrier()?;
        Ok(Copied {
            rounds: 2,
            pages: 2 * PAGES,
            suspend_ms: 0.1,
        })
    }

    fn resume_here(&mut self) -> Result<()> {
        match self.host.presence(&self.needs.uuid) {
            Presence::Absent => Err(Error::Xen("there is no such domain".to_owned())),
            _ => {
                self.host.set(&self.needs.uuid, Presence::Running);
                Ok(())
            }
        }
    }

    fn destroy(&mut self) -> Result<()> {
        self.host.state.lock().domains.remove(&self.needs.uuid);
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self.host.presence(&self.needs.uuid))
    }
}

impl FakeDestination {
    fn needs(&self) -> Result<&Needs> {
        let missing = || Error::Refused("nothing is reserved".to_owned());
        self.needs.as_ref().ok_or_else(missing)
    }
}

impl Destination for FakeDestination {
    fn reserve(&mut self, _: &str, needs: &Needs) -> Result<()> {
        let name = &needs.destination_name;
        let state = self.host.state.lock();
        if state.domains.values().any(|domain| domain.name == *name) {
            return Err(Error::Refused(format!("there is a {name} already")));
        }
        drop(state);
        self.needs = Some(needs.clone());
        Ok(())
    }

    fn receive(&mut self, _: &Control) -> Result<Arc<dyn Sink>> {
        let needs = self.needs()?;
        let incoming = format!("{}--incoming", needs.destination_name);
        self.host.put(&incoming, &needs.uuid, Presence::Partial);
        Ok(Arc::new(FakeSink {
            host: self.host.clone(),
            uuid: needs.uuid.clone(),
        }))
    }

    fn finish(&mut self) -> Result<()> {
        if self.host.state.lock().fails_to_build {
            return Err(Error::Xen("xl: no more loop devices".to_owned()));
        }
        self.host.set(&self.needs()?.uuid, Presence::Paused);
        Ok(())
    }

    fn unpause(&mut self, _: bool) -> Result<()> {
        let needs = self.needs()?;
        let mut state = self.host.state.lock();
        let found = state.domains.get_mut(&needs.uuid);
        let domain = found.ok_or_else(|| Error::Xen("there is no such domain".to_owned()))?;
        domain.presence = Presence::Running;
        domain.name.clone_from(&needs.destination_name);
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        let Some(needs) = &self.needs else {
            return Ok(());
        };
        let mut state = self.host.state.lock();
        let presence = state.domains.get(&needs.uuid).map(|domain| domain.presence);
        assert_ne!(
            presence,
            Some(Presence::Running),
            "a running copy is thrown away"
        );
        state.domains.remove(&needs.uuid);
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self.host.presence(&self.needs()?.uuid))
    }
}

impl Sink for FakeSink {
    fn bytes(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        let mut state = self.host.state.lock();
        let missing = || Error::Xen("the domain is gone".to_owned());
        let domain = state.domains.get_mut(&self.uuid).ok_or_else(missing)?;
        for (word, page) in batch.words.iter().zip(batch.data.chunks(PAGE_SIZE)) {
            domain.memory.insert(*word, page.to_vec());
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

/// Two hosts, `a` and `b`, whose daemons do not run yet.
pub struct Stopped {
    pub a: Arc<Fake>,
    pub b: Arc<Fake>,
    pub folder: tempfile::TempDir,
    addresses: [SocketAddr; 2],
    metrics: SocketAddr,
}

/// Two hosts with their daemons.
pub struct Pair {
    pub a: Arc<Fake>,
    pub b: Arc<Fake>,
    /// The daemon of `a`.
    pub left: Arc<Daemon>,
    /// The daemon of `b`.
    pub right: Arc<Daemon>,
    /// Where the daemon of `b` listens.
    pub address: SocketAddr,
    /// Where the daemon of `a` serves metrics.
    pub metrics: SocketAddr,
    pub folder: tempfile::TempDir,
}

impl Pair {
    pub fn start() -> Self {
        Self::prepare().go()
    }

    pub fn prepare() -> Stopped {
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        pki::init(&folder.path().join("pki")).unwrap();
        for host in ["a", "b", "c"] {
            pki::issue(&folder.path().join("pki"), &[host.to_owned()]).unwrap();
        }
        // Ports that are free now; both daemons must know them before either runs.
        let held = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [left, right, metrics] = held.map(|held| held.local_addr().unwrap());
        let prepared = Stopped {
            a: Arc::default(),
            b: Arc::default(),
            folder,
            addresses: [left, right],
            metrics,
        };
        for (host, end) in [("a", "source"), ("b", "destination")] {
            std::fs::create_dir_all(prepared.folder.path().join(host).join(end)).unwrap();
        }
        prepared
    }
}

impl Stopped {
    fn config(&self, host: &str, listen: SocketAddr) -> Config {
        let pki = self.folder.path().join("pki");
        let names = ["a", "b"].into_iter().zip(self.addresses);
        Config {
            name: host.to_owned(),
            listen,
            state: self.folder.path().join(host),
            socket: self.folder.path().join(format!("{host}.sock")),
            metrics: (host == "a").then_some(self.metrics),
            allow_uids: std::iter::empty().collect(),
            tls: Tls {
                authority: pki.join(pki::AUTHORITY),
                certificate: pki.join(format!("{host}.pem")),
                key: pki.join(format!("{host}.key")),
            },
            peers: names
                .map(|(name, address)| Peer {
                    name: name.to_owned(),
                    address: address.to_string(),
                })
                .collect(),
        }
    }

    /// Starts both daemons, the destination first.
    pub fn go(self) -> Pair {
        let daemon = |host: &str, fake: &Arc<Fake>, listen| {
            let handle = Arc::new(Handle(fake.clone()));
            Daemon::new(self.config(host, listen), handle).unwrap()
        };
        let right = daemon("b", &self.b, self.addresses[1]);
        right.start().unwrap();
        let left = daemon("a", &self.a, self.addresses[0]);
        left.start().unwrap();
        Pair {
            left,
            right,
            address: self.addresses[1],
            metrics: self.metrics,
            a: self.a,
            b: self.b,
            folder: self.folder,
        }
    }
}
