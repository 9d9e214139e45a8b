//! The fingerprint: everything a guest can see of the machine, as sorted keys and values.
//!
//! Two fingerprints of the same guest, before and after a move, must be equal.  What changes by
//! itself (counters, clocks, free memory) is left out where it is read; each file says what and
//! why, and [`volatile`] has the rules for file trees.  `collect` runs in the guest, [`wire`] carries
//! the result over the console, [`diff`] compares on the host.

pub mod boot;
pub mod collect;
pub mod cpuid;
pub mod devices;
pub mod files;
pub mod store;
pub mod volatile;
pub mod wire;

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Keys (such as `xenstore/domid`, `cpuid/40000001.0`) and values; both are text without control
/// characters, other bytes are written `\xNN`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint {
    entries: BTreeMap<String, String>,
}

impl Fingerprint {
    /// Adds an entry; a second one of the same key replaces the first.
    pub fn set(&mut self, key: &str, value: impl AsRef<[u8]>) {
        self.entries
            .insert(escape(key.as_bytes()), escape(value.as_ref()));
    }

    /// The entries in order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(String::as_str)
    }

    /// SHA-256 over `key TAB value LF` of all entries in order, in hexadecimal.
    #[must_use]
    pub fn hash(&self) -> String {
        digest(self.entries())
    }

    /// [`hash`](Self::hash) of each section (the keys up to their first `/`).
    #[must_use]
    pub fn section_hashes(&self) -> BTreeMap<String, String> {
        let section = |key: &str| key.split('/').next().unwrap_or_default().to_owned();
        let mut names: Vec<String> = self.entries.keys().map(|key| section(key)).collect();
        names.dedup();
        names
            .into_iter()
            .map(|name| {
                let its = self.entries().filter(|(key, _)| section(key) == name);
                let hash = digest(its);
                (name, hash)
            })
            .collect()
    }

    /// The entries as text, one `key TAB value` a line: for files and eyes.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.entries()
            .map(|(key, value)| format!("{key}\t{value}\n"))
            .collect()
    }

    /// Reads what [`to_text`](Self::to_text) wrote; lines without a tab are ignored.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let entries = text
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self { entries }
    }
}

fn digest<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    for (key, value) in entries {
        hash.update(key);
        hash.update("\t");
        hash.update(value);
        hash.update("\n");
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Printable ASCII stays, a backslash is doubled, anything else becomes `\n` or `\xNN`.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// One difference between two fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry's key.
    pub key: String,
    /// Its value in the first; `None` if it was not there.
    pub before: Option<String>,
    /// Its value in the second.
    pub after: Option<String>,
}

/// Everything that differs, in order of the keys.
#[must_use]
pub fn diff(before: &Fingerprint, after: &Fingerprint) -> Vec<Difference> {
    let mut keys: Vec<&String> = before.entries.keys().chain(after.entries.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(key) != after.get(key))
        .map(|key| Difference {
            key: key.clone(),
            before: before.get(key).map(str::to_owned),
            after: after.get(key).map(str::to_owned),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Difference, Fingerprint, diff};
    use proptest::prelude::{any, proptest};

    fn example() -> Fingerprint {
        let mut print = Fingerprint::default();
        print.set("xenstore/domid", "7");
        print.set("cpuid/0.0", "a b c d");
        print.set("boot/odd", b"\xff\n\\\t");
        print
    }

    #[test]
    fn order_of_collection_does_not_matter() {
        let mut other = Fingerprint::default();
        other.set("boot/odd", b"\xff\n\\\t");
        other.set("cpuid/0.0", "a b c d");
        other.set("xenstore/domid", "7");
        assert_eq!(other.hash(), example().hash());
        assert_eq!(other.get("boot/odd"), Some("\\xff\\n\\\\\\x09"));
    }

    #[test]
    fn differences_are_named() {
        let mut after = example();
        after.set("xenstore/domid", "8");
        after.set("xenstore/new", "");
        assert_eq!(diff(&example(), &example()), []);
        let found = diff(&example(), &after);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Difference {
                key: "xenstore/domid".into(),
                before: Some("7".into()),
                after: Some("8".into())
            }
        );
        assert_eq!(found[1].before, None);
        let (one, two) = (example().section_hashes(), after.section_hashes());
        assert_eq!(one["cpuid"], two["cpuid"]);
        assert_ne!(one["xenstore"], two["xenstore"]);
    }

    proptest! {
        #[test]
        fn text_is_lossless(pairs in proptest::collection::vec((".*", any::<Vec<u8>>()), 0..10)) {
            let mut print = Fingerprint::default();
            for (key, value) in &pairs {
                print.set(key, value);
            }
            assert_eq!(Fingerprint::from_text(&print.to_text()), print);
        }
    }
}
