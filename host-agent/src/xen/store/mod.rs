//! xenstore as the agent uses it: a trait, so that code which waits for guests can be tested without any, and
//! its implementation.
//!
//! Plain reads and writes use `xenstore-rs`.  Its synchronous client has no watches, transactions or
//! time-outs, and waiting for a guest needs all three.  So those have [connections](connection::Connection)
//! of their own, and the client is [called with a limit](timely::Timely).

mod connection;
mod timely;

use std::io;
use std::time::{Duration, Instant};

use xen_abi::xs_wire::MsgType;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

use crate::job::{Error, Result};
use connection::Connection;
use timely::Timely;

/// Longest time for an answer to a plain request.
const ANSWER: Duration = Duration::from_secs(20);

/// What the agent needs of xenstore.
pub(crate) trait Store: Send + Sync {
    /// A node's value; `None` if there is no such node.
    fn read(&self, path: &str) -> Result<Option<String>>;

    /// The names of a node's children; none if there is no such node.
    fn list(&self, path: &str) -> Result<Vec<String>>;

    /// Writes a node, and creates it if it is missing.
    fn write(&self, path: &str, value: &str) -> Result<()>;

    /// Removes a node and everything below it, if it exists.
    fn remove(&self, path: &str) -> Result<()>;

    /// Writes a node if its value is `expected`, in a transaction; tells whether it was.
    fn replace(&self, path: &str, expected: &str, value: &str) -> Result<bool>;

    /// Tells xenstored that a suspended domain resumes.
    fn resume(&self, domid: u16) -> Result<()>;

    /// Waits until `done` is true; `false` if the deadline comes first.  It is checked at the beginning,
    /// after each change at or below one of the paths, and a few times a second.
    fn wait(
        &self,
        paths: &[&str],
        until: Instant,
        done: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<bool>;
}

/// The host's xenstored.
pub(crate) struct XenStore(Timely<XsUnix>);

impl XenStore {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no xenstored here.
    pub(crate) fn open() -> Result<Self> {
        let client = Timely::new(XsUnix::new, ANSWER).map_err(|error| {
            Error::Refused(format!(
                "cannot connect to xenstored ({error}): is it running?"
            ))
        })?;
        Ok(Self(client))
    }
}

impl Store for XenStore {
    fn read(&self, path: &str) -> Result<Option<String>> {
        let node = path.to_owned();
        let value = self.0.ask(move |client| client.read(&node));
        let value = present(value).map_err(failed("read", path))?;
        Ok(value.map(|value| value.into_string()))
    }

    fn list(&self, path: &str) -> Result<Vec<String>> {
        let node = path.to_owned();
        let names = self.0.ask(move |client| client.directory(&node));
        let names = present(names).map_err(failed("list", path))?;
        let names = names.unwrap_or_default();
        // An empty directory is returned as one empty name.
        let named = names.into_iter().filter(|name| !name.is_empty());
        Ok(named.map(|name| name.into_string()).collect())
    }

    fn write(&self, path: &str, value: &str) -> Result<()> {
        let (node, value) = (path.to_owned(), value.to_owned());
        let written = self.0.ask(move |client| client.write(&node, &value));
        written.map_err(failed("write", path))
    }

    fn remove(&self, path: &str) -> Result<()> {
        let node = path.to_owned();
        let removed = self.0.ask(move |client| client.rm(&node));
        present(removed).map(drop).map_err(failed("remove", path))
    }

    fn replace(&self, path: &str, expected: &str, value: &str) -> Result<bool> {
        let failed = failed("change", path);
        let mut connection = Connection::open().map_err(&failed)?;
        replace(&mut connection, path, expected, value).map_err(failed)
    }

    fn resume(&self, domid: u16) -> Result<()> {
        let number = format!("{domid}\0");
        Connection::open()
            .and_then(|mut connection| connection.request(MsgType::RESUME, 0, number.as_bytes()))
            .map(drop)
            .map_err(failed("resume", &format!("domain {domid}")))
    }

    fn wait(
        &self,
        paths: &[&str],
        until: Instant,
        done: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let mut connection = Connection::open().map_err(failed("watch", &paths.join(", ")))?;
        for path in paths {
            connection.watch(path).map_err(failed("watch", path))?;
        }
        loop {
            if done()? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            connection
                .next_event(until)
                .map_err(failed("watch", &paths.join(", ")))?;
        }
    }
}

/// `None` for a missing node.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(what: &str, path: &str) -> impl Fn(io::Error) -> Error {
    let what = format!("xenstored cannot {what} {path}");
    move |error| Error::Xen(format!("{what}: {error}"))
}

/// A transaction fails when a change of another client comes between; it is retried then.
fn replace(
    connection: &mut Connection,
    path: &str,
    expected: &str,
    value: &str,
) -> io::Result<bool> {
    let node = format!("{path}\0");
    loop {
        let id = connection.request(MsgType::TRANSACTION_START, 0, b"\0")?;
        let id = String::from_utf8_lossy(&id);
        let id = id.trim_end_matches('\0').parse();
        let id: u32 = id.map_err(|_| io::ErrorKind::InvalidData)?;
        let found = present(connection.request(MsgType::READ, id, node.as_bytes()))?;
        let is_expected = found.as_deref() == Some(expected.as_bytes());
        if is_expected {
            let change = [node.as_bytes(), value.as_bytes()].concat();
            connection.request(MsgType::WRITE, id, &change)?;
        }
        let commit: &[u8] = if is_expected { b"T\0" } else { b"F\0" };
        match connection.request(MsgType::TRANSACTION_END, id, commit) {
            Ok(_) => return Ok(is_expected),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A store that is a map, and changes when it is waited for.

    use std::collections::{BTreeMap, VecDeque};
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::Store;
    use crate::job::Result;

    type Nodes = BTreeMap<String, String>;
    type Change = Box<dyn FnOnce(&mut Nodes) + Send>;

    /// Nodes, and what others will do to them, one change each time that somebody waits.
    #[derive(Default)]
    pub(crate) struct FakeStore {
        pub(crate) nodes: Mutex<Nodes>,
        pub(crate) coming: Mutex<VecDeque<Change>>,
        pub(crate) resumed: Mutex<Vec<u16>>,
    }

    impl FakeStore {
        pub(crate) fn with(nodes: &[(&str, &str)]) -> Self {
            let store = Self::default();
            for (path, value) in nodes {
                store.write(path, value).unwrap();
            }
            store
        }

        pub(crate) fn later(&self, change: impl FnOnce(&mut Nodes) + Send + 'static) {
            self.coming.lock().push_back(Box::new(change));
        }
    }

    impl Store for FakeStore {
        fn read(&self, path: &str) -> Result<Option<String>> {
            Ok(self.nodes.lock().get(path).cloned())
        }

        fn list(&self, path: &str) -> Result<Vec<String>> {
            let prefix = format!("{path}/");
            let nodes = self.nodes.lock();
            let below = nodes.keys().filter_map(|key| key.strip_prefix(&prefix));
            let mut names: Vec<String> = below
                .map(|rest| rest.split('/').next().unwrap_or_default().to_owned())
                .collect();
            names.dedup();
            Ok(names)
        }

        fn write(&self, path: &str, value: &str) -> Result<()> {
            self.nodes.lock().insert(path.to_owned(), value.to_owned());
            Ok(())
        }

        fn remove(&self, path: &str) -> Result<()> {
            self.nodes.lock().remove(path);
            Ok(())
        }

        fn replace(&self, path: &str, expected: &str, value: &str) -> Result<bool> {
            let mut nodes = self.nodes.lock();
            let is_expected = nodes.get(path).is_some_and(|found| found == expected);
            if is_expected {
                nodes.insert(path.to_owned(), value.to_owned());
            }
            Ok(is_expected)
        }

        fn resume(&self, domid: u16) -> Result<()> {
            self.resumed.lock().push(domid);
            Ok(())
        }

        fn wait(
            &self,
            _: &[&str],
            _: Instant,
            done: &mut dyn FnMut() -> Result<bool>,
        ) -> Result<bool> {
            loop {
                if done()? {
                    return Ok(true);
                }
                let Some(change) = self.coming.lock().pop_front() else {
                    return Ok(false);
                };
                change(&mut self.nodes.lock());
            }
        }
    }
}
