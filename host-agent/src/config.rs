//! `/etc/unmoved/unmoved.toml`: who this host is, whom it trusts, where things are.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::job::{Error, Result};

/// Where the configuration is looked for.
pub const PATH: &str = "/etc/unmoved/unmoved.toml";
/// Where the daemon listens for the command.
pub const SOCKET: &str = "/run/unmoved/unmoved.sock";

/// The configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's name, as in its certificate.
    pub name: String,
    /// Where other agents connect to.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Where the journal and the audit log are kept; must survive a crash of the host.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// Where the daemon listens for the command.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Where metrics are served, if at all.
    pub metrics: Option<SocketAddr>,
    /// Users besides root that may use the agent, by number.
    #[serde(default)]
    pub allow_uids: BTreeSet<u32>,
    /// The control domain's weight with Xen's scheduler while the daemon watches and copies a guest, unless it
    /// is higher; 0 leaves it as it is.
    #[serde(default = "copying_weight")]
    pub copying_weight: u16,
    /// Certificates.
    pub tls: Tls,
    /// Other hosts.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
}

/// Files of certificates.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// This host's.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its agent listens: address or name, and port.
    pub address: String,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong, and where in the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(Error::io(format!("cannot read {}", path.display())))?;
        Self::parse(&text).map_err(|why| Error::Refused(format!("{}: {why}", path.display())))
    }

    /// Reads and checks the text of a configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut names = BTreeSet::from([config.name.as_str()]);
        for peer in &config.peers {
            // The host itself may be a peer: a guest can be moved on one host.
            if !names.insert(&peer.name) && peer.name != config.name {
                return Err(format!("the peer {} is there twice", peer.name));
            }
            if !peer.address.contains(':') {
                return Err(format!("the address of {} has no port", peer.name));
            }
        }
        Ok(config)
    }

    /// The host of this name.
    ///
    /// # Errors
    /// If there is none; says which there are.
    pub fn peer(&self, name: &str) -> Result<&Peer> {
        let found = self.peers.iter().find(|peer| peer.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.peers.iter().map(|peer| &*peer.name).collect();
            let known = if names.is_empty() {
                "none"
            } else {
                &names.join(", ")
            };
            Error::Refused(format!(
                "there is no peer {name} in the configuration; there are: {known}"
            ))
        })
    }
}

fn listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7711))
}

fn state() -> PathBuf {
    "/var/lib/unmoved".into()
}

/// Four times that of a guest to which nobody has given another.
const fn copying_weight() -> u16 {
    1024
}

fn socket() -> PathBuf {
    SOCKET.into()
}

#[cfg(test)]
mod tests {
    use super::Config;

    const GOOD: &str = "
        name = 'a'
        [tls]
        authority = '/etc/unmoved/ca.pem'
        certificate = '/etc/unmoved/a.pem'
        key = '/etc/unmoved/a.key'
        [[peer]]
        name = 'b'
        address = '192.0.2.2:7711'
    ";

    #[test]
    fn a_short_configuration_is_enough() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!((config.listen.port(), config.copying_weight), (7711, 1024));
        assert_eq!(config.peer("b").unwrap().address, "192.0.2.2:7711");
        assert!(
            config
                .peer("c")
                .unwrap_err()
                .to_string()
                .contains("there are: b")
        );
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |text: &str| Config::parse(text).unwrap_err();
        assert!(wrong(&GOOD.replace("name = 'a'", "nome = 'a'")).contains("nome"));
        assert!(wrong(&GOOD.replace(":7711", "")).contains("no port"));
        let twice = format!("{GOOD}\n[[peer]]\nname = 'b'\naddress = 'x:1'");
        assert!(wrong(&twice).contains("twice"));
    }
}
