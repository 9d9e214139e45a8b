//! A small xenstore client over `/dev/xen/xenbus`, for looking at the store as the guest sees it.
//!
//! One request at a time, no watches.  The wire format is that of Xen's public header
//! `io/xs_wire.h`.  Works over anything that reads and writes, so that it is tested without Xen.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Where the kernel offers the store: the device, and the older file of xenfs.
pub(crate) const DOORS: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// The largest payload (`XENSTORE_PAYLOAD_MAX`).
const PAYLOAD_MAX: usize = 4096;
/// A directory that changes all the time is given up after so many parts.
const PARTS_MAX: usize = 10_000;

/// Message types (`enum xsd_sockmsg_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Directory = 1,
    Read = 2,
    GetPermissions = 3,
    GetDomainPath = 10,
    Write = 11,
    Remove = 13,
    WatchEvent = 15,
    Error = 16,
    DirectoryPart = 20,
}

/// Why the store did not do what was asked.
#[derive(Debug)]
pub enum Refusal {
    /// The store's own error name, such as `ENOENT`.
    Named(String),
    /// The connection failed.
    Broken(io::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => out.write_str(name),
            Self::Broken(error) => error.fmt(out),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A connection to the store.
pub struct Store<C> {
    connection: C,
    next: u32,
}

impl Store<File> {
    /// Opens the kernel's door to the store.
    ///
    /// # Errors
    /// If there is none: not a Xen guest, or xenfs not mounted.
    pub fn open() -> io::Result<Self> {
        let door = DOORS
            .into_iter()
            .find(|door| Path::new(door).exists())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no xenstore here"))?;
        let connection = OpenOptions::new().read(true).write(true).open(door)?;
        Ok(Self::new(connection))
    }
}

impl<C: Read + Write> Store<C> {
    /// Speaks to the store over `connection`.
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            next: 1,
        }
    }

    /// A node's value.
    ///
    /// # Errors
    /// As the store answers.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Refusal> {
        self.ask(Kind::Read, &[path.as_bytes(), b"\0"])
    }

    /// A node's children, sorted.
    ///
    /// # Errors
    /// As the store answers.
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>, Refusal> {
        let mut children = match self.ask(Kind::Directory, &[path.as_bytes(), b"\0"]) {
            Ok(names) => split(&names),
            Err(Refusal::Named(name)) if name == "E2BIG" => self.long_directory(path)?,
            Err(refusal) => return Err(refusal),
        };
        children.sort();
        Ok(children)
    }

    /// The children of a node whose list does not fit into one message.
    fn long_directory(&mut self, path: &str) -> Result<Vec<String>, Refusal> {
        let mut list: Vec<u8> = Vec::new();
        let mut generation: Option<Vec<u8>> = None;
        for _ in 0..PARTS_MAX {
            let offset = list.len().to_string();
            let request: [&[u8]; 4] = [path.as_bytes(), b"\0", offset.as_bytes(), b"\0"];
            let part = self.ask(Kind::DirectoryPart, &request)?;
            let Some(end) = part.iter().position(|&byte| byte == 0) else {
                return Err(malformed("directory part without a generation"));
            };
            let (now, names) = (&part[..end], &part[end + 1..]);
            if generation.as_deref().is_some_and(|before| before != now) {
                // It changed under our hands: from the start.
                list.clear();
                generation = None;
                continue;
            }
            generation = Some(now.to_vec());
            list.extend_from_slice(names);
            // The last part ends with an empty name.
            if names.is_empty() || list.ends_with(b"\0\0") || names == b"\0" {
                return Ok(split(&list));
            }
        }
        Err(malformed("directory never ends"))
    }

    /// A node's permissions, as the wire has them (`n5`, `r0`, …).
    ///
    /// # Errors
    /// As the store answers.
    pub fn permissions(&mut self, path: &str) -> Result<Vec<String>, Refusal> {
        let answer = self.ask(Kind::GetPermissions, &[path.as_bytes(), b"\0"])?;
        Ok(split(&answer))
    }

    /// The absolute path of a domain's own nodes.
    ///
    /// # Errors
    /// As the store answers.
    pub fn domain_path(&mut self, domid: &str) -> Result<String, Refusal> {
        let answer = self.ask(Kind::GetDomainPath, &[domid.as_bytes(), b"\0"])?;
        Ok(split(&answer).into_iter().next().unwrap_or_default())
    }

    /// Sets a node's value, making the node if needed.
    ///
    /// # Errors
    /// As the store answers.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Refusal> {
        self.ask(Kind::Write, &[path.as_bytes(), b"\0", value])?;
        Ok(())
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// As the store answers.
    pub fn remove(&mut self, path: &str) -> Result<(), Refusal> {
        self.ask(Kind::Remove, &[path.as_bytes(), b"\0"])?;
        Ok(())
    }

    fn ask(&mut self, kind: Kind, parts: &[&[u8]]) -> Result<Vec<u8>, Refusal> {
        let payload = parts.concat();
        if payload.len() > PAYLOAD_MAX {
            return Err(Refusal::Named("E2BIG".into()));
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(16 + payload.len());
        for field in [kind as u32, id, 0, length] {
            message.extend_from_slice(&field.to_le_bytes());
        }
        message.extend_from_slice(&payload);
        self.connection.write_all(&message)?;
        loop {
            let mut header = [0; 16];
            self.connection.read_exact(&mut header)?;
            let field = |index: usize| {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&header[index * 4..index * 4 + 4]);
                u32::from_le_bytes(bytes)
            };
            let length = usize::try_from(field(3)).unwrap_or(usize::MAX);
            if length > PAYLOAD_MAX {
                return Err(malformed("answer longer than the protocol allows"));
            }
            let mut answer = vec![0; length];
            self.connection.read_exact(&mut answer)?;
            if field(0) == Kind::WatchEvent as u32 {
                continue;
            }
            if field(1) != id {
                return Err(malformed("answer to another request"));
            }
            if field(0) == Kind::Error as u32 {
                let name = split(&answer).into_iter().next().unwrap_or_default();
                return Err(Refusal::Named(name));
            }
            if field(0) != kind as u32 {
                return Err(malformed("answer of another type"));
            }
            return Ok(answer);
        }
    }
}

fn malformed(what: &str) -> Refusal {
    Refusal::Broken(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Zero-terminated strings; empty ones only end a list.
fn split(bytes: &[u8]) -> Vec<String> {
    bytes
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Refusal, Store};
    use std::collections::VecDeque;
    use std::io::{self, Read, Write};

    type Answer = Box<dyn FnMut(u32, &[u8]) -> (u32, Vec<u8>)>;

    /// A store that answers each request by a function of type and payload.
    pub(crate) struct Fake {
        answer: Answer,
        pending: VecDeque<u8>,
    }

    impl Fake {
        pub(crate) fn store(
            answer: impl FnMut(u32, &[u8]) -> (u32, Vec<u8>) + 'static,
        ) -> Store<Self> {
            Store::new(Self {
                answer: Box::new(answer),
                pending: VecDeque::new(),
            })
        }
    }

    impl Write for Fake {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
            let (kind, payload) = (self.answer)(word(0), &bytes[16..]);
            let length = u32::try_from(payload.len()).expect("short");
            for field in [kind, word(4), 0, length] {
                self.pending.extend(field.to_le_bytes());
            }
            self.pending.extend(payload);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Fake {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.pending.read(buffer)
        }
    }

    #[test]
    fn values_lists_and_errors_come_back() {
        let mut store = Fake::store(|kind, payload| match (kind, payload) {
            (2, b"domid\0") => (2, b"7".to_vec()),
            (1, b"device\0") => (1, b"vif\0vbd\0".to_vec()),
            _ => (16, b"ENOENT\0".to_vec()),
        });
        assert_eq!(store.read("domid").expect("value"), b"7");
        assert_eq!(store.directory("device").expect("list"), ["vbd", "vif"]);
        let refusal = store.read("none").expect_err("refused");
        assert!(matches!(refusal, Refusal::Named(name) if name == "ENOENT"));
    }

    #[test]
    fn a_long_directory_comes_in_parts() {
        let mut store = Fake::store(|kind, payload| match (kind, payload) {
            (1, _) => (16, b"E2BIG\0".to_vec()),
            (20, b"big\x000\0") => (20, b"12\0b\0c\0".to_vec()),
            (20, b"big\x004\0") => (20, b"12\0a\0\0".to_vec()),
            _ => (16, b"EINVAL\0".to_vec()),
        });
        assert_eq!(store.directory("big").expect("list"), ["a", "b", "c"]);
    }

    #[test]
    fn a_lying_store_is_an_error() {
        let mut store = Fake::store(|_, _| (2, vec![0; 5000]));
        assert!(matches!(store.read("x"), Err(Refusal::Broken(_))));
        let mut store = Fake::store(|_, _| (11, Vec::new()));
        assert!(matches!(store.read("x"), Err(Refusal::Broken(_))));
        let mut store = Fake::store(|_, _| (20, b"no generation".to_vec()));
        assert!(store.long_directory("x").is_err());
        assert!(matches!(
            store.write("x", &[0; 5000]),
            Err(Refusal::Named(name)) if name == "E2BIG"
        ));
    }
}
