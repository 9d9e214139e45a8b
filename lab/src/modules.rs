//! Picks the kernel modules of an image and puts them in the order in which they can be loaded.
//!
//! The packages' `modules.dep` is made at installation, which does not happen here, so what a module
//! depends on is read from the module itself (`depends=` in its `.modinfo`).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tools::{Tools, filter};

/// A module ready to be loaded.
#[derive(Debug)]
pub struct Module {
    /// File name, `NAME.ko`.
    pub file: String,
    /// Its content, unpacked.
    pub content: Vec<u8>,
}

/// These modules of the kernel in `root`, and what they need, in load order.
///
/// A name that the kernel has built in is left out silently if `modules.builtin` says so.
///
/// # Errors
/// If a module does not exist or cannot be read.
pub fn pick(root: &Path, names: &[&str], tools: &Tools) -> Result<Vec<Module>> {
    let version = fs::read_dir(root.join("usr/lib/modules"))
        .and_then(|mut folder| folder.next().transpose())
        .ok()
        .flatten()
        .context("the image has no kernel modules")?
        .path();
    let mut files = BTreeMap::new();
    index(&version, &mut files)?;
    let builtin: HashSet<String> = fs::read_to_string(version.join("modules.builtin"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(canonical(line.rsplit('/').next()?.strip_suffix(".ko")?)))
        .collect();
    let mut picker = Picker {
        files,
        builtin,
        tools,
        seen: HashSet::new(),
        picked: Vec::new(),
    };
    for name in names {
        picker.pick(&canonical(name))?;
    }
    Ok(picker.picked)
}

struct Picker<'a> {
    files: BTreeMap<String, PathBuf>,
    builtin: HashSet<String>,
    tools: &'a Tools,
    seen: HashSet<String>,
    picked: Vec<Module>,
}

impl Picker<'_> {
    fn pick(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) || self.builtin.contains(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("the kernel has no module '{name}'");
        };
        let mut content = fs::read(path)?;
        if path.extension().is_some_and(|extension| extension == "xz") {
            let mut command = self.tools.command("xz");
            command.arg("-dc");
            content = filter(command, &content)?;
        }
        for needed in depends(&content) {
            self.pick(&canonical(&needed))?;
        }
        self.picked.push(Module {
            file: format!("{name}.ko"),
            content,
        });
        Ok(())
    }
}

/// Module names have dashes and underscores for the same thing.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            index(&entry.path(), files)?;
        } else if kind.is_file() {
            let leaf = entry.file_name().to_string_lossy().into_owned();
            if let Some((name, "ko" | "ko.xz")) = leaf.split_once('.') {
                files.insert(canonical(name), entry.path());
            }
        }
    }
    Ok(())
}

/// The module's own word on what it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module
        .windows(FIELD.len())
        .position(|window| window == FIELD)
    else {
        return Vec::new();
    };
    let value = &module[at + FIELD.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            depends(b"\x7fELF..\0depends=stp,llc\0name=bridge\0"),
            ["stp", "llc"]
        );
        assert!(depends(b"\0depends=\0name=stp\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
