//! What waits to be sent over one connection.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xen_abi::xs_wire::{Header, MsgType, PAYLOAD_MAX};
use zerocopy::IntoBytes as _;

use super::watch::Event;

/// Bytes of heap that a message takes besides its own: its place in the queue, and headers.
const MESSAGE_OVERHEAD: usize = 96;

/// One message, header included.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    bytes: Vec<u8>,
    is_event: bool,
}

/// Messages in the order of sending; the first may have been sent in part.
#[derive(Debug, Default)]
pub struct Queue {
    messages: VecDeque<Message>,
    /// Bytes of the first message that are gone.
    sent: usize,
    bytes: usize,
    replies: usize,
}

impl Queue {
    /// Queues the answer to `request`; `payload` is at most [`PAYLOAD_MAX`] bytes.
    pub fn reply(&mut self, request: &Header, kind: MsgType, payload: &[u8]) {
        let header = Header {
            kind: kind.0,
            req_id: request.req_id,
            tx_id: request.tx_id,
            len: length(payload),
        };
        self.push(header, payload, false);
    }

    /// Queues a watch event unless the very same is waiting already, there is no room within
    /// `memory_left`, or it is too long to be sent.
    pub fn event(&mut self, event: &Event, memory_left: usize) {
        let (path, token) = event;
        let payload = [path, &[0][..], token, &[0]].concat();
        let header = Header {
            kind: MsgType::WATCH_EVENT.0,
            req_id: 0,
            tx_id: 0,
            len: length(&payload),
        };
        let size = size_of::<Header>() + payload.len();
        if payload.len() > PAYLOAD_MAX || size >= memory_left {
            return;
        }
        // A guest that does not read has at most one event of each path and token waiting; special
        // names apart, which the daemon does not merge either.
        let waiting =
            |message: &Message| message.is_event && message.bytes[size_of::<Header>()..] == payload;
        if path.starts_with(b"@") || !self.messages.iter().any(waiting) {
            self.push(header, &payload, true);
        }
    }

    fn push(&mut self, header: Header, payload: &[u8], is_event: bool) {
        let bytes = [header.as_bytes(), payload].concat();
        self.bytes += MESSAGE_OVERHEAD + bytes.len();
        self.replies += usize::from(!is_event);
        self.messages.push_back(Message { bytes, is_event });
    }

    /// What is to be sent next; empty when nothing waits.
    pub fn front(&self) -> &[u8] {
        self.messages
            .front()
            .map_or(&[], |message| &message.bytes[self.sent..])
    }

    /// Notes that `count` bytes of [`front`](Self::front) have been sent.
    pub fn consume(&mut self, count: usize) {
        self.sent += count;
        let Some(first) = self.messages.front() else {
            self.sent = 0;
            return;
        };
        if self.sent >= first.bytes.len() {
            self.bytes -= MESSAGE_OVERHEAD + first.bytes.len();
            self.replies -= usize::from(!first.is_event);
            self.messages.pop_front();
            self.sent = 0;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Answers that wait.
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn length(payload: &[u8]) -> u32 {
    u32::try_from(payload.len()).expect("a payload was checked to be short")
}

#[cfg(test)]
mod tests {
    use xen_abi::xs_wire::{Header, MsgType};

    use super::{MESSAGE_OVERHEAD, Queue};

    const REQUEST: Header = Header {
        kind: 2,
        req_id: 9,
        tx_id: 1,
        len: 0,
    };

    #[test]
    fn messages_leave_in_order_and_in_pieces() {
        let mut queue = Queue::default();
        queue.event(&(b"a".to_vec(), b"t".to_vec()), 1000);
        queue.reply(&REQUEST, MsgType::READ, b"xy");
        assert_eq!(
            (queue.replies(), queue.bytes()),
            (1, 2 * MESSAGE_OVERHEAD + 20 + 18)
        );
        assert_eq!(queue.front(), b"\x0f\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0a\0t\0");
        queue.consume(19);
        assert_eq!(queue.front(), b"\0");
        queue.consume(1);
        assert_eq!(queue.front(), b"\x02\0\0\0\x09\0\0\0\x01\0\0\0\x02\0\0\0xy");
        queue.consume(18);
        assert!(queue.is_empty() && queue.front().is_empty());
        assert_eq!((queue.replies(), queue.bytes()), (0, 0));
    }

    #[test]
    fn an_event_that_waits_is_not_queued_again() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.event(&(b"a".to_vec(), b"t".to_vec()), 1000);
            queue.event(&(b"a".to_vec(), b"u".to_vec()), 1000);
        }
        assert_eq!(queue.messages.len(), 2);
        queue.event(&(b"@x".to_vec(), b"t".to_vec()), 1000);
        queue.event(&(b"@x".to_vec(), b"t".to_vec()), 1000);
        assert_eq!(queue.messages.len(), 4, "special events are not merged");
        queue.event(&(b"b".to_vec(), b"t".to_vec()), 20);
        queue.event(&(b"c".repeat(4096), b"t".to_vec()), 10000);
        assert_eq!(queue.messages.len(), 4, "no room, too long");
    }
}
