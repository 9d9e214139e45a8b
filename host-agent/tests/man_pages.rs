//! The manual pages: there is one for everything, and they leave nothing out.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something does not work"
)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use unmoved::config::{self, Config};

const CONFIGURATION: &str = "
    name = 'a'
    [tls]
    authority = '/ca'
    certificate = '/a'
    key = '/k'
    [[peer]]
    name = 'b'
    address = 'b:1'
    [peer.allow]
    bridges = []
";

fn page(name: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    let status = command.arg("man").arg(folder.path()).status().unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && !text.contains('@'));
    text
}

/// The names of what a page has marked items for.
fn described(page: &str) -> BTreeSet<&str> {
    let items = page.split(".TP\n").skip(1);
    items
        .filter_map(|item| item.split_whitespace().nth(1))
        .collect()
}

/// Keys of a table and all that is in it; sections are described by themselves.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let is_section =
                    value.is_object() || value.as_array().is_some_and(|list| !list.is_empty());
                if !is_section {
                    found.insert(key.clone());
                }
                keys(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn every_setting_is_described_with_its_default() {
    let config = Config::parse(CONFIGURATION).unwrap();
    let page = page("unmoved.toml.5");
    let mut all = BTreeSet::new();
    keys(&serde_json::to_value(&config).unwrap(), &mut all);
    assert!(
        all.contains("allow_uids") && all.contains("address"),
        "{all:?}"
    );
    // A section within a section has an entry, too, which says what it is of.
    all.insert("[peer.allow]".to_owned());
    assert_eq!(described(&page), all.iter().map(String::as_str).collect());
    let defaults = [
        config.listen.to_string(),
        config.state.display().to_string(),
        config.socket.display().to_string(),
    ];
    for default in defaults {
        let default = format!("Default:\n.BR \\(dq{default}\\(dq ");
        assert!(page.contains(&default), "{default}");
    }
    let weight = format!("Default:\n.BR {} ", config.copying_weight);
    assert!(page.contains(&weight), "{weight}");
    assert!(config.metrics.is_none() && config.allow_uids.is_empty());
    let (_, example) = page.split_once(".nf\n").unwrap();
    let (example, _) = example.split_once(".fi\n").unwrap();
    Config::parse(example).unwrap();
}

#[test]
fn every_option_of_the_daemon_is_described() {
    let page = page("unmovedd.8");
    assert!(page.contains(config::PATH) && page.contains(config::SOCKET));
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmovedd"));
    let help = String::from_utf8(command.arg("--help").output().unwrap().stdout).unwrap();
    let words = help.split([' ', '\n', ',']);
    let options: BTreeSet<_> = words.filter(|word| word.starts_with("--")).collect();
    assert!(options.contains("--check"), "{help}");
    for option in options {
        assert!(page.contains(&option.replace('-', "\\-")), "{option}");
    }
}
