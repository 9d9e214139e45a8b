//! Where the lab keeps things: the cache of images, the runs, the repository it was built from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of images, packages and snapshots, shared by all clones of one user.
///
/// `UNMOVED_CACHE`, else `unmoved` in the user's cache folder.
///
/// # Errors
/// If neither of `UNMOVED_CACHE`, `XDG_CACHE_HOME` and `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = var("UNMOVED_CACHE") {
        return Ok(folder);
    }
    if let Some(folder) = var("XDG_CACHE_HOME") {
        return Ok(folder.join("unmoved"));
    }
    let home = var("HOME").context("set UNMOVED_CACHE: there is no HOME to keep images in")?;
    Ok(home.join(".cache/unmoved"))
}

/// The repository that this program was built from.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is a folder of the workspace")
}

/// Cargo's output folder, where runs and their logs are kept.
#[must_use]
pub fn target() -> PathBuf {
    var("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |folder| workspace().join(folder),
    )
}

fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
