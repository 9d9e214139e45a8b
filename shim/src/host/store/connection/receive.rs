//! The receiving half of the connection: checks what comes back, and hands it to its client.

use alloc::format;
use alloc::vec::Vec;

use xen_abi::Errno;
use xen_abi::xs_wire::{Header, MsgType, error_from_payload, ring};

use super::{Active, StoreConnection};
use crate::host::StoreEvent;
use crate::host::store::message::{TooLong, watch_event};
use crate::host::store::pipe::{BadIndex, Pipe};
use crate::host::store::replace::Next;
use crate::mem::Frames;

/// From the daemon.
const RESPONSES: Pipe = Pipe {
    buffer: ring::RSP,
    size: ring::SIZE,
    consumer: ring::RSP_CONS,
    producer: ring::RSP_PROD,
};

impl StoreConnection {
    /// Takes one message if one is complete.
    pub(super) fn receive(&mut self, frames: &dyn Frames) -> bool {
        // A message may take several reads; each makes progress or returns.
        while !self.broken {
            if let Some((header, payload)) = self.incoming.take() {
                self.dispatch(&header, &payload);
                return true;
            }
            let count = match RESPONSES.read(frames, self.page, self.incoming.room()) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(BadIndex) => {
                    self.give_up("a bad response index");
                    return false;
                }
            };
            // Noted also for a part of a message: the daemon needs the room to send the rest.
            self.took = true;
            if let Err(TooLong(len)) = self.incoming.filled(count) {
                self.give_up(&format!("a message of {len} bytes"));
            }
        }
        false
    }

    fn dispatch(&mut self, header: &Header, payload: &[u8]) {
        let kind = MsgType(header.kind);
        // Events answer no request, whatever their id says.
        if kind == MsgType::WATCH_EVENT {
            self.watch_fired(payload);
            return;
        }
        let asked =
            |active: &&mut Active| active.req_id == header.req_id && active.answer.is_none();
        let Some(active) = self.active.iter_mut().find(asked) else {
            log::warn!("xenstore: an answer ({kind:?}) to nothing that was asked");
            return;
        };
        // The type is checked against what was asked: of a wrong one nothing is believed.
        let answer = if kind == MsgType::ERROR {
            Err(error_from_payload(payload))
        } else if kind == active.kind {
            Ok(match kind {
                MsgType::READ | MsgType::DIRECTORY | MsgType::TRANSACTION_START => payload.to_vec(),
                // The *OK* of the others is not worth the memory.
                _ => Vec::new(),
            })
        } else {
            log::warn!("xenstore: {:?} was answered by {kind:?}", active.kind);
            Err(Errno::EIO)
        };
        if answer.is_err() {
            // A watch that the daemon has refused never fires, and would be in the list for ever.
            self.watches
                .retain(|watch| Some(watch.token) != active.token);
        }
        active.answer = Some(answer);
        self.deliver();
    }

    /// Gives out the answers whose turn it is.
    pub(super) fn deliver(&mut self) {
        // From the front only: a reply that came early waits for those before it, since clients
        // count on their order.
        while let Some(active) = self.active.pop_front_if(|active| active.answer.is_some()) {
            let Some(answer) = active.answer else {
                continue;
            };
            let Some(replace) = &mut self.replacing else {
                self.ready
                    .push_back((active.tag, StoreEvent::Reply(answer)));
                continue;
            };
            match replace.answered(answer) {
                // The next request of the replacement, under its tag. `send` comes back here, to no
                // more than one that is too long to be sent.
                Next::Send(kind, tx, payload) => self.send(active.tag, kind, tx, &[&payload]),
                Next::Done(answer) => {
                    self.replacing = None;
                    self.ready
                        .push_back((active.tag, StoreEvent::Reply(answer)));
                }
            }
        }
    }

    fn watch_fired(&mut self, payload: &[u8]) {
        let Some((path, token)) = watch_event(payload) else {
            log::warn!("xenstore: a watch event of a wrong form");
            return;
        };
        // One that was just ended may still fire.
        let token = core::str::from_utf8(token)
            .ok()
            .and_then(|token| token.parse().ok());
        // Only tokens that we gave out. The path is only the daemon's word; whoever takes the event
        // judges it.
        if let Some(watch) = self.watches.iter().find(|watch| Some(watch.token) == token) {
            self.ready.push_back((watch.tag, StoreEvent::Changed(path)));
        }
    }
}
