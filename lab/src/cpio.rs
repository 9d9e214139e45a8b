//! Writes initramfs archives ("newc" cpio, the one format the kernel unpacks).
//!
//! Written here rather than by cpio(1): everything in it belongs to root and has no times, whoever
//! builds it and wherever, so that the same inputs give the same bytes.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

/// An archive being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    written: u64,
    names: HashSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    /// Start an archive on `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 1,
            written: 0,
            names: HashSet::new(),
        }
    }

    /// Add a folder and, if missing, those above it.
    ///
    /// # Errors
    /// If `out` does.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        if name.is_empty() || self.names.contains(name) {
            return Ok(());
        }
        self.parents(name)?;
        Ok(self.record(name, DIRECTORY | 0o755, (0, 0), &[])?)
    }

    /// Add a file with this content and these permission bits.
    ///
    /// # Errors
    /// If `out` does.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(name)?;
        Ok(self.record(name, REGULAR | mode, (0, 0), content)?)
    }

    /// Add a symbolic link.
    ///
    /// # Errors
    /// If `out` does.
    pub fn link(&mut self, name: &str, to: &str) -> Result<()> {
        self.parents(name)?;
        Ok(self.record(name, SYMLINK | 0o777, (0, 0), to.as_bytes())?)
    }

    /// Add a character device.
    ///
    /// # Errors
    /// If `out` does.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.parents(name)?;
        Ok(self.record(name, CHARACTER | 0o600, (major, minor), &[])?)
    }

    /// Add all below `root` for whose path, relative to it, `keep` says yes; in the order of names.
    ///
    /// # Errors
    /// If something cannot be read, or `out` fails.
    pub fn tree(&mut self, root: &Path, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        self.below(root, "", keep)
    }

    /// Add all files directly in `folder` below the folder `name` of the archive.
    ///
    /// # Errors
    /// If something cannot be read, or `out` fails.
    pub fn tree_as(&mut self, folder: &Path, name: &str) -> Result<()> {
        let mut entries = fs::read_dir(folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let leaf = entry.file_name();
            let leaf = leaf.to_str().context("a file name is not UTF-8")?;
            self.file(&format!("{name}/{leaf}"), 0o644, &fs::read(entry.path())?)?;
        }
        Ok(())
    }

    fn below(&mut self, root: &Path, name: &str, keep: &dyn Fn(&str) -> bool) -> Result<()> {
        let folder = root.join(name);
        let mut entries = fs::read_dir(&folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let leaf = entry.file_name();
            let leaf = leaf.to_str().context("a file name is not UTF-8")?;
            let path = if name.is_empty() {
                leaf.to_owned()
            } else {
                format!("{name}/{leaf}")
            };
            if !keep(&path) {
                continue;
            }
            let meta = entry.path().symlink_metadata()?;
            let kind = meta.file_type();
            if kind.is_dir() {
                self.folder(&path)?;
                self.below(root, &path, keep)?;
            } else if kind.is_symlink() {
                let to = fs::read_link(entry.path())?;
                self.link(&path, to.to_str().context("a link is not UTF-8")?)?;
            } else if kind.is_file() {
                let content = fs::read(entry.path())
                    .with_context(|| format!("cannot read {}", entry.path().display()))?;
                self.file(&path, meta.permissions().mode() & 0o7777, &content)?;
            } else if kind.is_char_device() {
                let device = meta.rdev();
                self.device(&path, libc::major(device), libc::minor(device))?;
            }
        }
        Ok(())
    }

    /// End the archive and give `out` back.
    ///
    /// # Errors
    /// If `out` does.
    pub fn finish(mut self) -> Result<W> {
        self.record("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        match name.rsplit_once('/') {
            Some((folder, _)) => self.folder(folder),
            None => Ok(()),
        }
    }

    fn record(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len())
            .map_err(|_| io::Error::other(format!("{name} is too long for an initramfs")))?;
        let inode = self.inode;
        self.inode += 1;
        self.names.insert(name.to_owned());
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            length,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).map_err(io::Error::other)?,
            0,
        ];
        let mut header = "070701".to_owned();
        for field in fields {
            use std::fmt::Write;
            let _ = write!(header, "{field:08x}");
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(data)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Names and contents begin at multiples of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_archive_has_the_layout_of_newc() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert!(bytes.len().is_multiple_of(4));
        assert_eq!(&bytes[..6], b"070701");
        // The folder comes first, by itself: 110 bytes of header, its name, padding.
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..118], b"070701");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("hello\0\0\x00070701"));
        assert!(text.contains("TRAILER!!!"));
    }
}
