//! What a user can get wrong, or lack, is told in one sentence.

use std::process::Command;

/// The last line on standard error of `lab-hold` in this environment.
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
fn complaint(environment: &[(&str, &str)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lab-hold"))
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn no_network_is_one_sentence() {
    let cache = tempfile::tempdir().unwrap();
    // Nobody listens on the discard port of this machine.
    let said = complaint(&[
        ("UNMOVED_CACHE", cache.path().to_str().unwrap()),
        ("UNMOVED_DEBIAN_MIRROR", "http://127.0.0.1:9/debian"),
    ]);
    assert!(
        said.contains("check the network, or name a mirror in UNMOVED_DEBIAN_MIRROR"),
        "{said}"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_one_sentence() {
    let said = complaint(&[("UNMOVED_CACHE", "/proc/nowhere")]);
    assert!(
        said.contains("cannot write to the cache /proc/nowhere"),
        "{said}"
    );
}
