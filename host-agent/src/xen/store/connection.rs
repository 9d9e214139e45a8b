//! An own connection to xenstored, for what must not share one: watches and transactions.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use xen_abi::xs_wire::{Header, MsgType, PAYLOAD_MAX};
use zerocopy::{FromBytes, IntoBytes};

/// Where xenstored listens, unless the environment says otherwise.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// Longest time for an answer.  After that, xenstored counts as dead.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest pause between two checks of a condition that can become true without an event, such as an abort.
const TICK: Duration = Duration::from_millis(200);

/// A connection.  Its watches and transactions end with it.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    next_request: u32,
    /// Paths of events that arrived while an answer was awaited.
    events: VecDeque<String>,
    /// The part of a message that has been received.
    partial: Vec<u8>,
}

impl Connection {
    /// Connects to the host's xenstored.
    pub(super) fn open() -> io::Result<Self> {
        if let Some(path) = std::env::var_os("XENSTORED_PATH") {
            return UnixStream::connect(path).and_then(Self::over);
        }
        let mut last = io::ErrorKind::NotFound.into();
        for path in SOCKETS {
            match UnixStream::connect(path) {
                Ok(socket) => return Self::over(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Over a socket that is connected.
    pub(super) fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_write_timeout(Some(ANSWER))?;
        Ok(Self {
            socket,
            next_request: 1,
            events: VecDeque::new(),
            partial: Vec::new(),
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What xenstored answered; [`io::ErrorKind::TimedOut`] if it does not answer; any other error means that
    /// the connection is unusable.
    pub(super) fn request(
        &mut self,
        kind: MsgType,
        transaction: u32,
        payload: &[u8],
    ) -> io::Result<Vec<u8>> {
        if payload.len() > PAYLOAD_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let id = self.next_request;
        self.next_request = id.wrapping_add(1).max(1);
        let header = Header {
            kind: kind.0,
            req_id: id,
            tx_id: transaction,
            len: u32::try_from(payload.len()).unwrap_or(0),
        };
        self.socket
            .write_all(&[header.as_bytes(), payload].concat())?;
        let until = Instant::now() + ANSWER;
        loop {
            let (header, payload) = self
                .receive(until)?
                .ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))?;
            match MsgType(header.kind) {
                MsgType::WATCH_EVENT => self.queue(&payload),
                MsgType::ERROR if header.req_id == id => return Err(error(&payload)),
                answered if answered == kind && header.req_id == id => return Ok(payload),
                other => {
                    let message = format!("xenstored answered {other:?} to {kind:?}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
    }

    /// Sets a watch on a path and everything below it.  The first event comes at once.
    pub(super) fn watch(&mut self, path: &str) -> io::Result<()> {
        let payload = format!("{path}\0unmoved\0");
        self.request(MsgType::WATCH, 0, payload.as_bytes())
            .map(drop)
    }

    /// The path of the next event; `None` after a tick without one, or at the deadline.
    pub(super) fn next_event(&mut self, until: Instant) -> io::Result<Option<String>> {
        if let Some(path) = self.events.pop_front() {
            return Ok(Some(path));
        }
        let until = until.min(Instant::now() + TICK);
        while let Some((header, payload)) = self.receive(until)? {
            if MsgType(header.kind) == MsgType::WATCH_EVENT {
                self.queue(&payload);
                return Ok(self.events.pop_front());
            }
        }
        Ok(None)
    }

    fn queue(&mut self, payload: &[u8]) {
        let path = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = String::from_utf8_lossy(path).into_owned();
        // Only the fact that something happened counts, so a flood need not be kept.
        if !self.events.contains(&path) {
            self.events.push_back(path);
        }
    }

    /// The next message; `None` if it is incomplete at the deadline.  The part that has arrived is kept.
    fn receive(&mut self, until: Instant) -> io::Result<Option<(Header, Vec<u8>)>> {
        loop {
            let mut wanted = size_of::<Header>();
            if let Ok((header, rest)) = Header::read_from_prefix(&self.partial) {
                let len = header.len as usize;
                if len > PAYLOAD_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if rest.len() >= len {
                    let message = self.partial.drain(..wanted + len);
                    return Ok(Some((header, message.skip(wanted).collect())));
                }
                wanted += len;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let have = self.partial.len();
            self.partial.resize(wanted, 0);
            let read = self.socket.read(&mut self.partial[have..]);
            self.partial.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// An error by xenstored's name for it.
fn error(payload: &[u8]) -> io::Error {
    let name = String::from_utf8_lossy(payload);
    let number = match name.trim_end_matches('\0') {
        "ENOENT" => libc::ENOENT,
        "EAGAIN" => libc::EAGAIN,
        "EACCES" => libc::EACCES,
        "EPERM" => libc::EPERM,
        "EEXIST" => libc::EEXIST,
        "EINVAL" => libc::EINVAL,
        "EBUSY" => libc::EBUSY,
        "E2BIG" => libc::E2BIG,
        "ENOSPC" => libc::ENOSPC,
        other => return io::Error::other(other.to_owned()),
    };
    io::Error::from_raw_os_error(number)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use xen_abi::xs_wire::{Header, MsgType};
    use zerocopy::{FromBytes, IntoBytes};

    use super::super::replace;
    use super::Connection;

    type Asked = Vec<(MsgType, Vec<u8>)>;

    /// A xenstored that answers as it is told: kind, payload and number of events before it.
    fn answering(
        answers: Vec<(MsgType, &'static [u8], usize)>,
    ) -> (Connection, thread::JoinHandle<Asked>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut asked = Vec::new();
            for (kind, payload, events) in answers {
                let mut header = [0; 16];
                theirs.read_exact(&mut header).unwrap();
                let header = Header::read_from_bytes(&header).unwrap();
                let mut request = vec![0; header.len as usize];
                theirs.read_exact(&mut request).unwrap();
                asked.push((MsgType(header.kind), request));
                for _ in 0..events {
                    send(&mut theirs, MsgType::WATCH_EVENT, 0, b"/a\0unmoved\0");
                }
                send(&mut theirs, kind, header.req_id, payload);
            }
            asked
        });
        (Connection::over(ours).unwrap(), server)
    }

    fn send(socket: &mut UnixStream, kind: MsgType, req_id: u32, payload: &[u8]) {
        let header = Header {
            kind: kind.0,
            req_id,
            tx_id: 0,
            len: payload.len() as u32,
        };
        // In two pieces, as a slow server may.
        socket.write_all(header.as_bytes()).unwrap();
        socket.write_all(payload).unwrap();
    }

    #[test]
    fn events_between_request_and_answer_are_kept_once() {
        let (mut connection, server) = answering(vec![(MsgType::WATCH, b"OK\0", 3)]);
        connection.watch("/a").unwrap();
        server.join().unwrap();
        let soon = Instant::now() + Duration::from_secs(60);
        assert_eq!(connection.next_event(soon).unwrap().as_deref(), Some("/a"));
        // Nothing more, and the server is gone.
        assert!(connection.next_event(soon).is_err());
    }

    #[test]
    fn a_value_is_replaced_only_if_it_is_the_expected_one() {
        let start = (MsgType::TRANSACTION_START, b"7\0".as_slice(), 0);
        let (mut connection, server) = answering(vec![
            start,
            (MsgType::READ, b"suspend", 0),
            (MsgType::WRITE, b"OK\0", 0),
            // Somebody came between: it begins anew, and then the value is another.
            (MsgType::ERROR, b"EAGAIN\0", 0),
            start,
            (MsgType::READ, b"", 0),
            (MsgType::TRANSACTION_END, b"OK\0", 0),
        ]);
        assert!(!replace(&mut connection, "/c", "suspend", "").unwrap());
        let asked = server.join().unwrap();
        assert_eq!(asked[3], (MsgType::TRANSACTION_END, b"T\0".to_vec()));
        assert_eq!(asked[6], (MsgType::TRANSACTION_END, b"F\0".to_vec()));
    }

    #[test]
    fn an_answer_that_is_too_long_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::over(ours).unwrap();
        let header = [MsgType::READ.0, 1, 0, 1 << 30];
        theirs.write_all(header.as_bytes()).unwrap();
        let error = connection.request(MsgType::READ, 0, b"/\0").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
