//! `/etc/unmoved/unmoved.toml`: who this host is, whom it trusts, where things are.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::job::{Error, Result};
use crate::policy::Allow;
use crate::text::is_fit;
use crate::transport::tls;

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
    /// Whether moves from here have memory and state compared at both ends, where nothing else is said.
    #[serde(default)]
    pub verify: bool,
    /// Certificates.
    pub tls: Tls,
    /// What guests that come may have of this host, whichever peer they are from.
    #[serde(default)]
    pub allow: Allow,
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
    /// A list of certificates that count no more, if there is one; read anew for each connection.
    pub revoked: Option<PathBuf>,
}

/// Another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its agent listens: address or name, and port.
    pub address: String,
    /// Disks that both hosts have, by the operator's word, as patterns.
    #[serde(default)]
    pub shared_storage: Vec<String>,
    /// What its guests may have of this host, in place of [`Config::allow`].
    pub allow: Option<Allow>,
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
        check_name(&config.name)?;
        let mut names = BTreeSet::from([config.name.as_str()]);
        for peer in &config.peers {
            // The host itself may be a peer: a guest can be moved on one host.
            if !names.insert(&peer.name) && peer.name != config.name {
                return Err(format!("the peer {} is configured twice", peer.name));
            }
            check_name(&peer.name)?;
            check_address(&peer.address)
                .map_err(|why| format!("the address of {} {why}", peer.name))?;
        }
        Ok(config)
    }

    /// What this host shows to others, and whom it trusts.
    ///
    /// # Errors
    /// If a file is missing or wrong; says which.
    pub fn identity(&self) -> Result<tls::Identity> {
        let Tls {
            authority,
            certificate,
            key,
            revoked,
        } = &self.tls;
        let identity = tls::Identity::load(authority, certificate, key)
            .map_err(Error::io("certificates"))?
            .without(revoked.clone());
        identity
            .check(&self.name)
            .map_err(Error::io("certificates"))?;
        Ok(identity)
    }

    /// What guests of this peer may have here.
    #[must_use]
    pub fn allowed(&self, peer: &str) -> &Allow {
        let known = self.peers.iter().find(|known| known.name == peer);
        known
            .and_then(|peer| peer.allow.as_ref())
            .unwrap_or(&self.allow)
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
                "there is no peer {name} in the configuration; the peers are: {known}"
            ))
        })
    }
}

/// A host is told by the name in its certificate, and no certificate has any other.
fn check_name(name: &str) -> std::result::Result<(), String> {
    if tls::is_name(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a host name: certificates hold DNS names or IP addresses"
    ))
}

/// Where to connect to: `HOST:PORT`, an IPv6 address in brackets.
fn check_address(address: &str) -> std::result::Result<(), String> {
    let (host, port) = address.rsplit_once(':').ok_or("has no port")?;
    // As `to_socket_addrs` takes it.
    if port.parse::<u16>().is_ok_and(|port| port > 0) {
        let host = match host.strip_prefix('[') {
            Some(inner) => inner
                .strip_suffix(']')
                .filter(|inner| inner.parse::<Ipv6Addr>().is_ok()),
            None => Some(host).filter(|host| !host.contains(':')),
        };
        return match host {
            Some(host) if is_fit(host, 253) && !host.is_empty() && !host.contains(' ') => Ok(()),
            _ => Err("has no host: write NAME:PORT, or [ADDRESS]:PORT for IPv6".to_owned()),
        };
    }
    Err(format!("has no valid port: {port:?}"))
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
                .contains("the peers are: b")
        );
    }

    #[test]
    fn a_peer_has_a_list_of_its_own_or_that_of_all() {
        let text = format!(
            "{GOOD}\n[[peer]]\nname = 'c'\naddress = 'c:1'\n[peer.allow]\nbridges = ['lan']\n\
             [allow]\nvolumes = ['/dev/vg/*']"
        );
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.allowed("b").volumes, ["/dev/vg/*"]);
        let own = config.allowed("c");
        assert!(own.volumes.is_empty() && own.bridges == ["lan"]);
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |text: &str| Config::parse(text).unwrap_err();
        assert!(wrong(&GOOD.replace("name = 'a'", "nome = 'a'")).contains("nome"));
        assert!(wrong(&GOOD.replace(":7711", "")).contains("no port"));
        let port = wrong(&GOOD.replace(":7711", ":notaport"));
        assert!(port.contains("notaport"), "{port}");
        for address in [
            ":7711",
            "192.0.2.2:0",
            "192.0.2.2:65536",
            "a b:1",
            "::1:7711",
            "[x]:1",
        ] {
            let text = GOOD.replace("192.0.2.2:7711", address);
            assert!(wrong(&text).contains("the address of b"), "{address}");
        }
        Config::parse(&GOOD.replace("192.0.2.2", "[2001:db8::2]")).unwrap();
        for name in ["", "b c", "b\\u001b[2J", "-"] {
            let why = wrong(&GOOD.replace("name = 'b'", &format!("name = \"{name}\"")));
            assert!(why.contains("is not a host name"), "{why}");
        }
        let twice = format!("{GOOD}\n[[peer]]\nname = 'b'\naddress = 'x:1'");
        assert!(wrong(&twice).contains("twice"));
    }
}
