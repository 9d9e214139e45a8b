//! Debian packages as the material of images: resolved, downloaded and unpacked, never installed.
//!
//! apt-get does the work with a configuration of its own: an empty package database (so that it names
//! *every* dependency, whatever this machine has), lists and archives in the cache, and the machine's
//! own mirror with the suite that is asked for.  No root is needed and the machine is not changed.
//! What a wish resolved to is kept (`resolved/`), so that images change only when somebody asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::suite::Suite;
use crate::{cache, mirror, paths, progress};

/// One package file, as recorded beside each image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The file's name in the package folder of the cache: `name_version_architecture.deb`.
    pub file: String,
    /// Its SHA-256.
    pub sha256: String,
}

impl Package {
    /// The package's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.file.split('_').next().unwrap_or_default()
    }

    /// Where the file is.
    ///
    /// # Errors
    /// If there is no cache folder.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(paths::cache()?.join("debs").join(&self.file))
    }
}

/// The packages in a recipe: one per line, `#` begins a comment.
pub fn lines(recipe: &str) -> impl Iterator<Item = &str> {
    recipe
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
}

/// These packages of a suite and all that they depend on, downloaded.
///
/// The answer to the same wish stays the same until the cache's `resolved/` is emptied
/// (`cargo xtask setup --refresh`).
///
/// # Errors
/// If the archive cannot be reached or does not have a package.
pub fn packages(suite: Suite, wanted: &[String]) -> Result<Vec<Package>> {
    let cache = paths::cache()?;
    let _lock = cache::lock("apt")?;
    let wish = wanted.join(" ");
    let key = cache::key([suite.name().as_bytes(), wish.as_bytes()]);
    let record = cache
        .join("resolved")
        .join(format!("{}-{key}.json", suite.name()));
    if let Ok(text) = fs::read_to_string(&record) {
        let known: Vec<Package> = serde_json::from_str(&text)
            .with_context(|| format!("{} is broken: remove it", record.display()))?;
        return Ok(known);
    }
    cache::need_room()?;
    let apt = Apt::new(&cache, suite)?;
    let step = progress::step(format!("Debian {}: downloading packages", suite.name()));
    apt.update()?;
    let files = apt.resolve(wanted)?;
    apt.download(wanted)?;
    let mut packages = Vec::new();
    for file in files {
        let sha256 = cache::sha256(&cache.join("debs").join(&file))?;
        packages.push(Package { file, sha256 });
    }
    packages.sort_by(|a, b| a.file.cmp(&b.file));
    fs::create_dir_all(cache.join("resolved"))?;
    fs::write(&record, serde_json::to_string_pretty(&packages)?)?;
    step.done(&format!("{} packages", packages.len()));
    Ok(packages)
}

/// Unpack packages over each other into `root`, with the merged `/usr` that they expect.
///
/// # Errors
/// If a package is missing from the cache or broken.
pub fn unpack(packages: &[Package], root: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(folder))?;
        std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    for package in packages {
        let path = package.path()?;
        ensure!(
            path.is_file(),
            "the cache has lost {}: run `cargo xtask setup --refresh`",
            package.file
        );
        let mut data = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb: the lab needs a Debian or Ubuntu machine")?;
        let pipe = data.stdout.take().expect("asked for above");
        let tar = Command::new("tar")
            .args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"])
            .arg(root)
            .stdin(pipe)
            .status()
            .context("cannot run tar")?;
        ensure!(
            data.wait()?.success() && tar.success(),
            "cannot unpack {}",
            package.file
        );
    }
    Ok(())
}

/// An apt-get that knows only one suite and nothing of this machine's packages.
struct Apt {
    config: PathBuf,
    nowhere: PathBuf,
    suite: Suite,
}

impl Apt {
    fn new(cache: &Path, suite: Suite) -> Result<Self> {
        let home = cache.join("apt").join(suite.name());
        let debs = cache.join("debs");
        let nowhere = home.join("nowhere");
        for folder in [
            home.join("lists/partial"),
            debs.join("partial"),
            nowhere.join("partial"),
        ] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot write to the cache {}", cache.display()))?;
        }
        fs::write(home.join("status"), "")?;
        fs::write(home.join("sources.list"), mirror::sources(suite)?)?;
        let config = home.join("apt.conf");
        let (home, debs) = (home.display(), debs.display());
        fs::write(
            &config,
            format!(
                "Dir::Etc::sourcelist \"{home}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 Dir::State \"{home}\";\n\
                 Dir::State::lists \"{home}/lists\";\n\
                 Dir::State::status \"{home}/status\";\n\
                 Dir::Cache \"{home}\";\n\
                 Dir::Cache::archives \"{debs}\";\n\
                 APT::Architecture \"amd64\";\n\
                 APT::Architectures {{ \"amd64\"; }};\n\
                 APT::Install-Recommends \"false\";\n\
                 APT::Sandbox::User \"root\";\n\
                 APT::Update::Post-Invoke-Success \"\";\n\
                 #clear APT::Update::Post-Invoke-Success;\n\
                 #clear APT::Update::Post-Invoke;\n\
                 #clear DPkg::Post-Invoke;\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Retries \"3\";\n\
                 Acquire::http::Timeout \"30\";\n"
            ),
        )?;
        Ok(Self {
            config,
            nowhere,
            suite,
        })
    }

    fn update(&self) -> Result<()> {
        self.run(&["update".to_owned(), "--error-on=any".to_owned()])
            .with_context(|| {
                format!(
                    "cannot reach the Debian archive for {}: check the network, or name a mirror in {}",
                    self.suite.name(),
                    mirror::VARIABLE
                )
            })
            .map(drop)
    }

    /// Names of the files that the packages and their dependencies come in.
    fn resolve(&self, wanted: &[String]) -> Result<Vec<String>> {
        let mut arguments: Vec<String> = ["install", "-y", "--print-uris", "-o"]
            .map(str::to_owned)
            .into();
        // With the real folder, apt would leave out what has been downloaded already.
        arguments.push(format!("Dir::Cache::archives={}", self.nowhere.display()));
        arguments.extend_from_slice(wanted);
        let text = self.run(&arguments)?;
        let files: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
            .collect();
        ensure!(
            !files.is_empty(),
            "apt-get names no files for {}",
            wanted.join(" ")
        );
        Ok(files)
    }

    fn download(&self, wanted: &[String]) -> Result<()> {
        let mut arguments: Vec<String> = ["install", "-y", "--download-only"]
            .map(str::to_owned)
            .into();
        arguments.extend_from_slice(wanted);
        self.run(&arguments).map(drop)
    }

    fn run(&self, arguments: &[String]) -> Result<String> {
        let output = Command::new("apt-get")
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C.UTF-8")
            .arg("-q")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run apt-get: the lab needs a Debian or Ubuntu machine")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let reason = text
                .lines()
                .find(|line| line.starts_with("E:"))
                .unwrap_or(text.trim());
            bail!("apt-get {} failed: {reason}", arguments[0]);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{Package, lines};

    #[test]
    fn a_recipe_has_comments_and_blanks() {
        let names: Vec<&str> = lines("# head\nbash\n\n  dash # shell\n").collect();
        assert_eq!(names, ["bash", "dash"]);
    }

    #[test]
    fn a_package_knows_its_name() {
        let package = Package {
            file: "libc6_2.36-9%2bdeb12u10_amd64.deb".to_owned(),
            sha256: String::new(),
        };
        assert_eq!(package.name(), "libc6");
    }
}
