//! Files and directories below `/proc` and `/sys` as entries of a fingerprint.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::{Fingerprint, volatile};

/// Attributes are a page; what is longer is cut, and says so.
const LONGEST: u64 = 16 << 10;
const DEEPEST: usize = 8;

/// A file's contents without the final line end; an error's name in parentheses if it can not be
/// read.
#[must_use]
pub fn read(path: &Path) -> Vec<u8> {
    let mut contents = Vec::new();
    let opened =
        fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut contents));
    if let Err(error) = opened {
        return format!("({})", error.kind()).into_bytes();
    }
    if contents.len() as u64 == LONGEST {
        contents.extend_from_slice(b"(cut)");
    }
    while contents.last() == Some(&b'\n') {
        contents.pop();
    }
    contents
}

/// Adds one file as `key`, if it exists.
pub fn file(print: &mut Fingerprint, key: &str, path: &Path) {
    if path.exists() {
        print.set(key, read(path));
    }
}

/// Adds every readable file below `root` as `key/…`; links by where they point, not followed.
pub fn tree(print: &mut Fingerprint, key: &str, root: &Path) {
    walk(print, key, root, 0);
}

fn walk(print: &mut Fingerprint, key: &str, directory: &Path, depth: usize) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    if depth > DEEPEST {
        return;
    }
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if volatile::in_files(&name) {
            continue;
        }
        let key = format!("{key}/{name}");
        if kind.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            print.set(&key, target.to_string_lossy().as_bytes());
        } else if kind.is_dir() {
            walk(print, &key, &entry.path(), depth + 1);
        } else if is_readable(&entry.path()) {
            print.set(&key, read(&entry.path()));
        }
    }
}

/// Attributes without a read permission are orders to the kernel; opening them tells nothing.
fn is_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o444 != 0)
}

#[cfg(test)]
mod tests {
    use super::{file, tree};
    use crate::fingerprint::Fingerprint;
    use std::fs;

    #[test]
    fn a_tree_is_walked_without_its_counters() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        fs::create_dir_all(path.join("version")).expect("made");
        fs::create_dir_all(path.join("statistics")).expect("made");
        fs::write(path.join("version/major"), "4\n").expect("written");
        fs::write(path.join("statistics/rx"), "99").expect("written");
        std::os::unix::fs::symlink("../elsewhere", path.join("driver")).expect("linked");
        let mut print = Fingerprint::default();
        tree(&mut print, "hypervisor", path);
        file(&mut print, "none", &path.join("none"));
        let found: Vec<_> = print.entries().collect();
        assert_eq!(
            found,
            [
                ("hypervisor/driver", "../elsewhere"),
                ("hypervisor/version/major", "4")
            ]
        );
    }
}
