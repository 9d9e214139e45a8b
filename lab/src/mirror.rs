//! Which Debian archive to take packages from: the one this machine itself is configured for.
//!
//! No archive is named in this repository.  A machine that has none (Ubuntu, or a bare container)
//! names one in [`VARIABLE`].  Both of apt's formats are read: one-line `.list` and deb822 `.sources`.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::suite::Suite;

/// Environment variable with another archive's address, up to but without `/dists`.
pub const VARIABLE: &str = "UNMOVED_DEBIAN_MIRROR";

/// What [`choose`] was given.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Take packages from the archive at `address`, whatever is configured or in [`VARIABLE`].  The first call counts.
pub fn choose(address: &str) {
    CHOSEN.get_or_init(|| address.to_owned());
}

/// Debian's own key ring: holds the keys of all its releases, so one machine can check another's.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const RELEASES: [&str; 8] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "stable",
    "testing",
    "oldstable",
];

/// One source of packages, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    address: String,
    suites: Vec<String>,
    components: Vec<String>,
}

impl Source {
    /// Does it serve Debian itself (`security`: its security updates)?
    fn serves(&self, security: bool) -> bool {
        self.components.iter().any(|component| component == "main")
            && self.suites.iter().any(|suite| {
                let release = if security {
                    suite.strip_suffix("-security")
                } else {
                    Some(suite.as_str())
                };
                release.is_some_and(|release| RELEASES.contains(&release))
            })
    }
}

/// A `sources.list` for `suite`, by this machine's mirror or the one in [`VARIABLE`].
///
/// # Errors
/// If this machine has no Debian mirror and none is named, or lacks Debian's keys.
pub fn sources(suite: Suite) -> Result<String> {
    let known = configured();
    let find = |security| known.iter().find(|source| source.serves(security));
    let named = CHOSEN
        .get()
        .cloned()
        .or_else(|| std::env::var(VARIABLE).ok());
    let main = match named {
        Some(address) if !address.is_empty() => address,
        _ => find(false)
            .map(|source| source.address.clone())
            .with_context(|| {
                format!("this machine has no Debian mirror configured: name one in {VARIABLE}")
            })?,
    };
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is missing: install the package debian-archive-keyring");
    }
    let name = suite.name();
    let mut text = format!("deb [signed-by={KEYRING}] {main} {name} main\n");
    if let Some(security) = find(true) {
        text += &format!(
            "deb [signed-by={KEYRING}] {} {name}-security main\n",
            security.address
        );
    }
    Ok(text)
}

fn configured() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            Some("sources") => sources.extend(text.split("\n\n").filter_map(stanza)),
            _ => {}
        }
    }
    sources
}

/// `deb [options] address suite component…`
fn one_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        address: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
    })
}

/// A paragraph of `Field: value` lines.
fn stanza(text: &str) -> Option<Source> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            (!line.starts_with('#') && field.trim().eq_ignore_ascii_case(name)).then_some(value)
        })?;
        Some(
            value
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    };
    if field("Enabled").is_some_and(|value| value == ["no"]) {
        return None;
    }
    field("Types")?
        .iter()
        .any(|kind| kind == "deb")
        .then_some(())?;
    Some(Source {
        address: field("URIs")?.into_iter().next()?,
        suites: field("Suites")?,
        components: field("Components").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::{one_line, stanza};

    #[test]
    fn one_line_sources_are_read() {
        let source =
            one_line("deb [arch=amd64 signed-by=/x] http://a.example/debian bookworm main contrib")
                .unwrap();
        assert_eq!(source.address, "http://a.example/debian");
        assert!(source.serves(false) && !source.serves(true));
        assert_eq!(
            one_line("# deb http://a.example/debian bookworm main"),
            None
        );
        assert_eq!(
            one_line("deb-src http://a.example/debian bookworm main"),
            None
        );
    }

    #[test]
    fn paragraphs_are_read() {
        let text = "Types: deb\n# URIs: http://old.example\nURIs: http://a.example/sec\nSuites: bookworm-security\nComponents: main\n";
        let source = stanza(text).unwrap();
        assert_eq!(source.address, "http://a.example/sec");
        assert!(source.serves(true) && !source.serves(false));
        assert_eq!(stanza(&format!("{text}Enabled: no\n")), None);
    }

    #[test]
    fn other_peoples_archives_are_not_debian() {
        let docker = one_line("deb https://d.example/linux/debian bookworm stable").unwrap();
        assert!(!docker.serves(false));
        let other = one_line("deb https://c.example/apt cloud-sdk-bookworm main").unwrap();
        assert!(!other.serves(false));
    }
}
