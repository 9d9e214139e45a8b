//! Mutual TLS 1.3 between agents, and nothing else.
//!
//! The only root is the installation's own certification authority ([`crate::pki`]).  Both ends show a
//! certificate; each must belong to a host in the other's configuration.  There are no tickets and no early
//! data, so nothing of a connection can be used in another.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use rustls::client::{Resumption, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use sha2::{Digest, Sha256};

use super::{Socket, cipher};

/// Longest time for a handshake and the first message, together.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// This host's certificate and key, and the hosts that it trusts.
#[derive(Clone)]
pub struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: CertificateDer<'static>,
    /// The list of revoked certificates.
    revoked: Option<PathBuf>,
}

/// An accepted connection.
pub type Accepted = StreamOwned<ServerConnection, Socket>;
/// A connection that was made.
pub type Connected = StreamOwned<ClientConnection, Socket>;

impl Identity {
    /// Reads the authority's certificate, and this host's certificate and key.
    ///
    /// # Errors
    /// Names the file that is unreadable or wrong.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> io::Result<Self> {
        let read = |path: &Path| {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| bad(path, error))
        };
        let mut roots = RootCertStore::empty();
        for root in read(authority)? {
            roots.add(root).map_err(|error| bad(authority, error))?;
        }
        let chain = read(certificate)?;
        let own = chain
            .first()
            .cloned()
            .ok_or_else(|| bad(certificate, "the file holds no certificate"))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error))?;
        let provider = Arc::new(cipher::provider());
        let roots = Arc::new(roots);

        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| bad(authority, error))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain.clone(), private.clone_key())
            })
            .map_err(|error| bad(certificate, error))?;
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, private)
            })
            .map_err(|error| bad(certificate, error))?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            own,
            revoked: None,
        })
    }

    /// The same, but without the certificates that this list revokes.  It is read for each connection.
    #[must_use]
    pub fn without(mut self, revoked: Option<PathBuf>) -> Self {
        self.revoked = revoked;
        self
    }

    /// Checks that others will know this host by this name, and that the list of revoked certificates is
    /// valid.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, name: &str) -> io::Result<()> {
        self.is_counted(&self.own)?;
        let certificate = ParsedCertificate::try_from(&self.own).map_err(refused)?;
        let name = ServerName::try_from(name).map_err(refused)?;
        verify_server_name(&certificate, &name)
            .map_err(|error| refused(format!("this host's certificate: {error}")))
    }

    /// Checks that a certificate is not revoked; if that cannot be found out, it counts as revoked.
    fn is_counted(&self, certificate: &CertificateDer<'_>) -> io::Result<()> {
        let Some(path) = &self.revoked else {
            return Ok(());
        };
        let list = fs::read_to_string(path).map_err(|error| bad(path, error))?;
        let own = fingerprint(certificate);
        for line in list.lines() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            let entry = entry.replace(':', "").to_ascii_lowercase();
            if entry.len() != own.len() || !entry.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad(path, "a line is not a SHA-256 fingerprint"));
            }
            if entry == own {
                return Err(refused(format!("the certificate {own} is revoked here")));
            }
        }
        Ok(())
    }

    /// Accepts a connection from one of these hosts; returns its name.  The socket's deadline stays, because
    /// the first message must arrive in the same time.
    ///
    /// # Errors
    /// If it is not TLS 1.3, the certificate is not from our authority, or belongs to none of these hosts.
    pub fn accept<'a>(
        &self,
        mut socket: Socket,
        hosts: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<(Accepted, String)> {
        socket.set_deadline_within(HANDSHAKE);
        let mut connection = ServerConnection::new(self.server.clone()).map_err(refused)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let certificate = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| refused("no certificate"))?;
        self.is_counted(certificate)?;
        let certificate = ParsedCertificate::try_from(certificate).map_err(refused)?;
        let is_of = |host: &&str| {
            ServerName::try_from(*host)
                .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
        };
        let host = hosts
            .into_iter()
            .find(is_of)
            .ok_or_else(|| refused("the certificate does not belong to a configured peer"))?
            .to_owned();
        Ok((StreamOwned::new(connection, socket), host))
    }

    /// Connects to this host.  The socket's deadline stays.
    ///
    /// # Errors
    /// If it does not speak TLS 1.3, its certificate is not from our authority or belongs to another host, or
    /// it refuses ours.
    pub fn connect(&self, mut socket: Socket, host: &str) -> io::Result<Connected> {
        socket.set_deadline_within(HANDSHAKE);
        let name = ServerName::try_from(host.to_owned()).map_err(refused)?;
        let mut connection = ClientConnection::new(self.client.clone(), name).map_err(refused)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        self.is_counted(certificate.ok_or_else(|| refused("no certificate"))?)?;
        Ok(StreamOwned::new(connection, socket))
    }
}

/// Whether a certificate can have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// A certificate's SHA-256 in hexadecimal digits.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(&Sha256::digest(certificate))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

fn bad(path: &Path, error: impl fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn refused(error: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())
}
