//! A pair of daemons on hosts in memory.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use unmoved::config::{Config, Peer, Tls};
use unmoved::daemon::Daemon;
use unmoved::pki;
use unmoved::policy::Allow;

use crate::fake::{Fake, Handle};

/// A user besides root that may use the agents.
pub const ALLOWED: u32 = 65533;

/// The list of certificates that count no more at either host, empty at first.
pub const REVOKED: &str = "revoked";

/// Two hosts, `a` and `b`, whose daemons do not run yet.
pub struct Stopped {
    pub a: Arc<Fake>,
    pub b: Arc<Fake>,
    pub folder: tempfile::TempDir,
    addresses: [SocketAddr; 2],
    metrics: SocketAddr,
    allowed: BTreeSet<u32>,
    verifies: bool,
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
        std::fs::write(folder.path().join(REVOKED), "").unwrap();
        // Ports that are free now; both daemons must know them before either runs.
        let held = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [left, right, metrics] = held.map(|held| held.local_addr().unwrap());
        let prepared = Stopped {
            a: Arc::default(),
            b: Arc::default(),
            folder,
            addresses: [left, right],
            metrics,
            // Tests need not be root.
            allowed: [ALLOWED, rustix::process::geteuid().as_raw()].into(),
            verifies: false,
        };
        for (host, end) in [("a", "source"), ("b", "destination")] {
            std::fs::create_dir_all(prepared.folder.path().join(host).join(end)).unwrap();
        }
        prepared
    }
}

impl Stopped {
    /// Lets nobody but root and [`ALLOWED`] use the agents.
    pub fn strict(mut self) -> Self {
        self.allowed = [ALLOWED].into();
        self
    }

    /// Has copies compared where nothing else is said.
    pub fn verifying(mut self) -> Self {
        self.verifies = true;
        self
    }

    fn config(&self, host: &str, listen: SocketAddr) -> Config {
        let pki = self.folder.path().join("pki");
        let names = ["a", "b"].into_iter().zip(self.addresses);
        Config {
            name: host.to_owned(),
            listen,
            state: self.folder.path().join(host),
            socket: self.folder.path().join(format!("{host}.sock")),
            metrics: (host == "a").then_some(self.metrics),
            allow_uids: self.allowed.clone(),
            copying_weight: 0,
            verify: self.verifies,
            tls: Tls {
                authority: pki.join(pki::AUTHORITY),
                certificate: pki.join(format!("{host}.pem")),
                key: pki.join(format!("{host}.key")),
                revoked: Some(self.folder.path().join(REVOKED)),
            },
            allow: Allow {
                volumes: vec!["/dev/vg/*".to_owned()],
                ..Allow::default()
            },
            peers: names
                .map(|(name, address)| Peer {
                    name: name.to_owned(),
                    address: address.to_string(),
                    shared_storage: Vec::new(),
                    allow: None,
                })
                .collect(),
        }
    }

    fn daemon(&self, host: &str, fake: &Arc<Fake>, listen: SocketAddr) -> Arc<Daemon> {
        let handle = Handle::new(fake);
        let daemon = Daemon::new(self.config(host, listen), handle).unwrap();
        daemon.start().unwrap();
        daemon
    }

    /// Starts the source's daemon only.
    pub fn go_left(&self) -> Arc<Daemon> {
        self.daemon("a", &self.a, self.addresses[0])
    }

    /// Starts the destination's daemon only.
    pub fn go_right(&self) -> Arc<Daemon> {
        self.daemon("b", &self.b, self.addresses[1])
    }

    /// Starts the destination's daemon only; the disk does not give this folder any more.
    pub fn go_right_without(&self, folder: &str) -> Arc<Daemon> {
        let handle = Handle::new(&self.b);
        let daemon = Daemon::new(self.config("b", self.addresses[1]), handle).unwrap();
        std::fs::remove_dir(self.folder.path().join("b").join(folder)).unwrap();
        daemon.start().unwrap();
        daemon
    }

    /// Starts both daemons, the destination first.
    pub fn go(self) -> Pair {
        let right = self.go_right();
        let left = self.go_left();
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
