//! The installation's own certification authority: one command makes it, one gives a host its certificate.
//!
//! Two agents trust each other because the same authority has signed both their certificates, and each
//! has the other's name in its configuration.  The authority's key is needed only to issue; it need not
//! be on any of the hosts.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// File names in a folder of certificates.
pub const AUTHORITY: &str = "ca.pem";
/// The authority's key.
pub const AUTHORITY_KEY: &str = "ca.key";

/// Makes a new authority in this folder.  Gives the files written.
///
/// # Errors
/// If there is one already, or a file cannot be written.
pub fn init(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(|error| at(folder, &error))?;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "Unmoved authority");
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    Ok(vec![
        write_new(&folder.join(AUTHORITY_KEY), &key.serialize_pem(), 0o600)?,
        write_new(&folder.join(AUTHORITY), &certificate.pem(), 0o644)?,
    ])
}

/// Issues a certificate for this host, valid under `names` (the host's name first; addresses are
/// allowed), with the authority in `folder`.  Gives the files written.
///
/// # Errors
/// If there is no authority, the host has a certificate already, or a file cannot be written.
pub fn issue(folder: &Path, names: &[String]) -> io::Result<Vec<PathBuf>> {
    let host = names
        .first()
        .filter(|name| is_file_name(name))
        .ok_or_else(|| io::Error::other("a certificate needs the host's name"))?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|error| at(&path, &error))
    };
    let authority_key = KeyPair::from_pem(&read(AUTHORITY_KEY)?).map_err(io::Error::other)?;
    let issuer =
        Issuer::from_ca_cert_pem(&read(AUTHORITY)?, authority_key).map_err(io::Error::other)?;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params
        .distinguished_name
        .push(DnType::CommonName, host.as_str());
    let certificate = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
    Ok(vec![
        write_new(
            &folder.join(format!("{host}.key")),
            &key.serialize_pem(),
            0o600,
        )?,
        write_new(
            &folder.join(format!("{host}.pem")),
            &certificate.pem(),
            0o644,
        )?,
    ])
}

/// A name that stays in its folder.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<PathBuf> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| at(path, &error))?;
    Ok(path.to_owned())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{init, issue};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_for_their_owner_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = init(folder.path()).unwrap();
        let names = ["a".to_owned(), "192.0.2.1".to_owned()];
        files.extend(issue(folder.path(), &names).unwrap());
        for file in &files {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            let is_key = file.extension().is_some_and(|extension| extension == "key");
            assert_eq!(mode, if is_key { 0o600 } else { 0o644 }, "{file:?}");
        }
        assert!(init(folder.path()).is_err());
        assert!(issue(folder.path(), &names).is_err());
    }

    #[test]
    fn a_host_cannot_be_a_path() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path()).unwrap();
        for name in ["", "../a", "a/b", ".hidden"] {
            assert!(issue(folder.path(), &[name.to_owned()]).is_err(), "{name}");
        }
    }
}
