//! `cargo xtask fuzz`: builds a fuzz target with the pinned, stable compiler and runs it.
//!
//! libFuzzer needs coverage counters in the code.  The compiler's own pass puts them there by flags
//! that must reach nothing else, so the targets are workspaces of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use unmoved_lab::paths;

/// Feed one of the fuzz targets for a while, or so often.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// The target; without one, all are listed
    target: Option<String>,
    /// For how long; 60 if it is not said how often either
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// How often
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
}

/// For how long a target is fed if nothing is said, seconds.
const SECONDS: u64 = 60;

/// The workspaces that hold the targets.
const CRATES: [&str; 2] = ["shim/fuzz", "stream/fuzz"];

/// What the fuzzer gets its coverage from.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing -Ccodegen-units=1";

/// The flags only reach the target's own code, not build scripts, if a platform is named.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

impl Fuzz {
    /// Do it.
    ///
    /// # Errors
    /// If there is no such target, it can not be built, or it found something.
    pub fn run(self) -> Result<()> {
        let Some(target) = &self.target else {
            for (folder, name) in targets(paths::workspace())? {
                println!("{name:<14} {}", folder.display());
            }
            return Ok(());
        };
        let known = targets(paths::workspace())?;
        let Some((folder, name)) = known.iter().find(|(_, name)| name == target) else {
            let names: Vec<_> = known.iter().map(|(_, name)| name.as_str()).collect();
            bail!("no target {target}; there are {}", names.join(", "));
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .current_dir(folder)
            .env("RUSTFLAGS", FLAGS)
            .args(["build", "--release", "--target", PLATFORM, "--bin", name])
            .status()
            .context("cannot run cargo")?;
        if !built.success() {
            bail!("{name} can not be built");
        }
        let corpus = folder.join("corpus").join(name);
        let artifacts = folder.join("artifacts").join(name);
        for folder in [&corpus, &artifacts] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let program = folder.join("target").join(PLATFORM).join("release");
        let status = Command::new(program.join(name))
            .args(self.limits())
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1")
            .arg(&corpus)
            .status()
            .with_context(|| format!("cannot run {name}"))?;
        if !status.success() {
            bail!("{name} found something: see {}", artifacts.display());
        }
        Ok(())
    }

    /// When libFuzzer is to end, whichever comes first.
    fn limits(&self) -> Vec<String> {
        let seconds = self.seconds.or(self.runs.is_none().then_some(SECONDS));
        let seconds = seconds.map(|seconds| format!("-max_total_time={seconds}"));
        let runs = self.runs.map(|runs| format!("-runs={runs}"));
        seconds.into_iter().chain(runs).collect()
    }
}

/// Returns all targets with their workspaces.
fn targets(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for folder in CRATES.map(|folder| root.join(folder)) {
        let sources = folder.join("fuzz_targets");
        let entries = std::fs::read_dir(&sources)
            .with_context(|| format!("cannot list {}", sources.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs")
                && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            {
                found.push((folder.clone(), name.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Fuzz, targets};
    use unmoved_lab::paths;

    #[test]
    fn it_ends_by_time_if_nothing_is_said() {
        let limits = |seconds, runs| {
            let target = None;
            Fuzz {
                target,
                seconds,
                runs,
            }
            .limits()
        };
        assert_eq!(limits(None, None), ["-max_total_time=60"]);
        assert_eq!(limits(None, Some(5)), ["-runs=5"]);
        assert_eq!(limits(Some(7), Some(5)), ["-max_total_time=7", "-runs=5"]);
    }

    #[test]
    fn every_target_is_found_and_declared() {
        let found = targets(paths::workspace()).expect("the sources are there");
        assert!(found.iter().any(|(_, name)| name == "hypercalls"));
        for (folder, name) in found {
            let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
            assert!(
                manifest.contains(&format!("name = \"{name}\"")),
                "{name} has no [[bin]] in {}",
                folder.display()
            );
        }
    }
}
