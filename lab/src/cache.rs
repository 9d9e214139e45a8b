//! A folder of things that are dear to make: each entry is a folder named by what it was made from.
//!
//! An entry is made in a scratch folder and renamed when it is complete, so what exists is whole; a
//! lock file keeps two programs from making the same thing twice.  Nothing is ever changed in place.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::paths;

/// Space that must be free before something is made: packages, unpacked roots and a snapshot.
const ROOM: u64 = 4 << 30;

/// Entries that were not used for this long are removed when another of their name is made.
const STALE: Duration = Duration::from_secs(2 * 24 * 3600);
/// Hexadecimal digits of a key.
const KEY_LENGTH: usize = 16;

/// Hash of the parts that something is made from; a change of any of them gives another key.
#[must_use]
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut text = hex(&hash.finalize());
    text.truncate(KEY_LENGTH);
    text
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The folder of entry `name` with key `key`, made by `make` (which fills an empty folder) if it is missing.
///
/// # Errors
/// If `make` fails, or the cache cannot be written or has no room.
pub fn entry(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let path = cache.join(format!("{name}-{key}"));
    if path.is_dir() {
        mark_used(&path);
        return Ok(path);
    }
    let _lock = lock(name)?;
    if path.is_dir() {
        return Ok(path);
    }
    check_room(&cache, ROOM)?;
    let scratch = cache.join(format!(".making-{name}-{key}"));
    remove(&scratch)?;
    fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot write to the cache {}", cache.display()))?;
    make(&scratch)?;
    fs::rename(&scratch, &path)?;
    remove_stale(&cache, name);
    Ok(path)
}

/// An entry's time is that of its last use.
fn mark_used(path: &Path) {
    // In a cache that we may only read, somebody else looks after it.
    let _ = File::open(path).and_then(|folder| folder.set_modified(SystemTime::now()));
}

/// Remove the entries of this name that nobody used for long: an older recipe made them.
fn remove_stale(cache: &Path, name: &str) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let key = file
            .to_str()
            .and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        let age = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if key.is_some_and(|key| key.len() == KEY_LENGTH) && age.is_some_and(|age| age > STALE) {
            let _ = remove(&entry.path());
        }
    }
}

/// Hold the cache's lock called `name` until the file is dropped; waits for other holders.
///
/// # Errors
/// If the cache cannot be written.
pub fn lock(name: &str) -> Result<File> {
    let folder = paths::cache()?.join("locks");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot write to the cache {}", folder.display()))?;
    let file = File::create(folder.join(name))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", folder.join(name).display()))?;
    Ok(file)
}

/// Remove a folder tree that may not exist.
///
/// # Errors
/// If it exists and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Fail with one sentence if the file system of the cache has no room for what is to be made.
///
/// # Errors
/// Then, or if the cache cannot be written.
pub fn need_room() -> Result<()> {
    check_room(&paths::cache()?, ROOM)
}

fn check_room(folder: &Path, room: u64) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot write to the cache {}", folder.display()))?;
    let stat = rustix::fs::statvfs(folder)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < room {
        bail!(
            "the disk of {} is nearly full: {} MiB are free and images need {} (set UNMOVED_CACHE to another disk)",
            folder.display(),
            free >> 20,
            room >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_room, key};

    #[test]
    fn a_full_disk_is_one_sentence() {
        let folder = std::env::temp_dir();
        assert!(check_room(&folder, 0).is_ok());
        let error = check_room(&folder, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("is nearly full") && !error.contains('\n'));
    }

    #[test]
    fn a_key_tells_where_parts_end() {
        assert_ne!(key([b"ab".as_slice(), b"c"]), key([b"a".as_slice(), b"bc"]));
        assert_eq!(key([b"a".as_slice()]), key([b"a".as_slice()]));
        assert_eq!(key([]).len(), 16);
    }
}
