//! Messages of either side of a ring: put together from their parts, and from bytes that come in
//! pieces.

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xs_wire::{Header, MsgType, PAYLOAD_MAX};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Appends a message to `out`; `None`, and nothing appended, when its payload is too long.
pub fn encode(
    out: &mut Vec<u8>,
    kind: MsgType,
    req_id: u32,
    tx_id: u32,
    parts: &[&[u8]],
) -> Option<()> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    let header = Header {
        kind: kind.0,
        req_id,
        tx_id,
        // Checked before anything is appended: half a message would take the stream out of step for
        // good.
        len: u32::try_from(len).ok().filter(|_| len <= PAYLOAD_MAX)?,
    };
    out.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(())
}

/// A message longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub u32);

/// A message that arrives in pieces.
#[derive(Debug)]
pub struct Incoming {
    header: Header,
    header_got: usize,
    payload: Vec<u8>,
    payload_got: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self::new()
    }
}

impl Incoming {
    /// Waits for a message.
    pub fn new() -> Self {
        Self {
            header: Header::new_zeroed(),
            header_got: 0,
            payload: Vec::new(),
            payload_got: 0,
        }
    }

    /// Where the next bytes belong; empty when the message is complete.
    pub fn room(&mut self) -> &mut [u8] {
        // An empty payload leaves no room, so that a message without one is complete at once.
        if self.header_got < size_of::<Header>() {
            &mut self.header.as_mut_bytes()[self.header_got..]
        } else {
            &mut self.payload[self.payload_got..]
        }
    }

    /// Notes that `count` bytes of [`room`](Self::room) were filled.
    pub fn filled(&mut self, count: usize) -> Result<(), TooLong> {
        if self.header_got == size_of::<Header>() {
            self.payload_got += count;
            return Ok(());
        }
        self.header_got += count;
        if self.header_got == size_of::<Header>() {
            let len = self.header.len as usize;
            // Before the buffer is made as long as the other end says.
            if len > PAYLOAD_MAX {
                return Err(TooLong(self.header.len));
            }
            self.payload.resize(len, 0);
        }
        Ok(())
    }

    /// Returns the message if it is complete, and waits for the next.
    pub fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let complete =
            self.header_got == size_of::<Header>() && self.payload_got == self.payload.len();
        complete.then(|| {
            let done = core::mem::take(self);
            (done.header, done.payload)
        })
    }
}

/// Splits a watch event's payload into path and token.
pub fn watch_event(payload: &[u8]) -> Option<(String, &[u8])> {
    // The last NUL ends the token; with it split off, exactly two strings remain.
    let mut strings = payload.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let (path, token) = (strings.next()?, strings.next()?);
    let path = core::str::from_utf8(path).ok()?;
    strings
        .next()
        .is_none()
        .then(|| (String::from(path), token))
}

#[cfg(test)]
mod tests {
    use xen_abi::xs_wire::MsgType;

    use super::{Incoming, TooLong, encode, watch_event};

    #[test]
    fn a_message_survives_any_cut() {
        let mut bytes = Vec::new();
        encode(&mut bytes, MsgType::WRITE, 3, 4, &[b"a\0", b"xyz"]).expect("short");
        encode(&mut bytes, MsgType::READ, 5, 0, &[]).expect("short");
        for step in 1..bytes.len() {
            let (mut incoming, mut got, mut rest) = (Incoming::new(), Vec::new(), &bytes[..]);
            while !rest.is_empty() {
                let room = incoming.room();
                let count = step.min(room.len()).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                incoming.filled(count).expect("short");
                rest = &rest[count..];
                got.extend(incoming.take());
            }
            assert_eq!(got.len(), 2);
            assert_eq!(
                (got[0].0.kind, got[0].0.tx_id, &got[0].1[..]),
                (11, 4, &b"a\0xyz"[..])
            );
            assert_eq!((got[1].0.req_id, got[1].0.len), (5, 0));
        }
    }

    #[test]
    fn lengths_are_bounded_both_ways() {
        let mut bytes = Vec::new();
        assert_eq!(
            encode(&mut bytes, MsgType::WRITE, 3, 4, &[&[0; 4097]]),
            None
        );
        assert!(bytes.is_empty());
        let mut incoming = Incoming::new();
        let header = b"\x02\0\0\0\x07\0\0\0\0\0\0\0\x01\x10\0\0";
        incoming.room().copy_from_slice(header);
        assert_eq!(incoming.filled(16), Err(TooLong(4097)));
    }

    #[test]
    fn a_watch_event_is_two_strings() {
        assert_eq!(
            watch_event(b"a/b\0t\0"),
            Some((String::from("a/b"), &b"t"[..]))
        );
        for bad in [&b""[..], b"\0", b"a\0", b"a\0t", b"a\0t\0x\0", b"\xff\0t\0"] {
            assert_eq!(watch_event(bad), None, "{bad:?}");
        }
    }
}
