//! `unmovedd --check` finds what would keep the daemon from running, or from being believed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;

use unmoved::pki;

/// A configuration of the host `a` with certificates of `b` beside its own.
fn configuration(folder: &Path) -> String {
    let pki = folder.join("pki");
    pki::init(&pki).unwrap();
    for host in ["a", "b"] {
        pki::issue(&pki, &[host.to_owned()]).unwrap();
    }
    let file = |name: &str| pki.join(name).display().to_string();
    format!(
        "name = 'a'\n[tls]\nauthority = '{}'\ncertificate = '{}'\nkey = '{}'\n\
         [[peer]]\nname = 'b'\naddress = '192.0.2.2:7711'\n",
        file("ca.pem"),
        file("a.pem"),
        file("a.key")
    )
}

/// What is said of it, if anything.
fn check(folder: &Path, text: &str) -> Option<String> {
    let path = folder.join("unmoved.toml");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmovedd"));
    let output = command.arg("--check").arg("--config").arg(path).output();
    let output = output.unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn certificates_names_and_ports_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let good = configuration(folder);
    assert_eq!(check(folder, &good), None);
    for (from, to, why) in [
        ("a.pem", "missing.pem", "missing.pem"),
        ("ca.pem", "none.pem", "none.pem"),
        ("a.key", "b.key", "a.pem"),
        ("name = 'a'", "name = 'c'", "this host's certificate"),
        ("name = 'b'", "name = 'b two'", "is not a host name"),
        ("7711", "notaport", "notaport"),
        (
            "[[peer]]",
            "revoked = '/nowhere/at/all'\n[[peer]]",
            "/nowhere/at/all",
        ),
    ] {
        let said = check(folder, &good.replace(from, to)).unwrap_or_default();
        assert!(said.contains(why), "{to}: {said:?}");
        // It is told once.
        assert_eq!(said.matches(why).count(), 1, "{said}");
    }
}
