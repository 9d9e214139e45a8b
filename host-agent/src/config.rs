//! `/etc/unmoved/unmoved.toml`: this host's name, trusted peers, and paths.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::job::{Error, Result};
use crate::policy::Allow;
use crate::text::is_fit;
use crate::transport::tls;

/// Default path of the configuration.
pub const PATH: &str = "/etc/unmoved/unmoved.toml";
/// Default path of the daemon's socket.
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
    /// Folder of the journals and the audit log; must survive a crash of the host.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// Path of the daemon's socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// User IDs that may use the agent, besides root.
    #[serde(default)]
    pub allow_uids: BTreeSet<u32>,
    /// The control domain's scheduler weight while the daemon watches or copies a guest, unless it is higher
    /// already.  0 leaves the weight alone.
    #[serde(default = "copying_weight")]
    pub copying_weight: u16,
    /// Whether migrations from here verify memory and state, unless the request says otherwise.
    #[serde(default)]
    pub verify: bool,
    /// Certificates.
    pub tls: Tls,
    /// What arriving guests may use of this host, whichever peer sends them.
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
    /// This host's certificate.
    pub certificate: PathBuf,
    /// This host's key.
    pub key: PathBuf,
    /// A list of revoked certificates, if there is one.  It is read again for each connection.
    pub revoked: Option<PathBuf>,
}

/// Another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where its agent listens: `HOST:PORT`.
    pub address: String,
    /// Patterns of disks that both hosts share, as the operator vouches.
    #[serde(default)]
    pub shared_storage: Vec<String>,
    /// What its guests may use of this host, instead of [`Config::allow`].
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

    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        check_name(&config.name)?;
        let mut names = BTreeSet::from([config.name.as_str()]);
        for peer in &config.peers {
            // The host itself may be a peer: a guest can migrate within one host.
            if !names.insert(&peer.name) && peer.name != config.name {
                return Err(format!("the peer {} is configured twice", peer.name));
            }
            check_name(&peer.name)?;
            check_address(&peer.address)
                .map_err(|why| format!("the address of {} {why}", peer.name))?;
        }
        Ok(config)
    }

    /// This host's certificate and key, and the trusted peers.
    ///
    /// # Errors
    /// Names the file that is missing or wrong.
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

    /// What guests of this peer may use here.
    #[must_use]
    pub fn allowed(&self, peer: &str) -> &Allow {
        let known = self.peers.iter().find(|known| known.name == peer);
        known
            .and_then(|peer| peer.allow.as_ref())
            .unwrap_or(&self.allow)
    }

    /// The peer of this name.
    ///
    /// # Errors
    /// If there is none; lists the peers.
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

/// Hosts are identified by the name in their certificates, so a name must be valid there.
fn check_name(name: &str) -> std::result::Result<(), String> {
    if tls::is_name(name) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a host name: certificates hold DNS names or IP addresses"
    ))
}

/// Splits `HOST:PORT`; an IPv6 address stands in brackets.
fn check_address(address: &str) -> std::result::Result<(), String> {
    let (host, port) = address.rsplit_once(':').ok_or("has no port")?;
    // The form that `to_socket_addrs` takes.
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

/// Four times the default weight of a guest.
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
