//! The connections of an arriving stream.  Each is admitted once; the stream begins when all have arrived.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use crate::session::SessionId;
use crate::transport::{Duplex, Watch};

/// The connections that have arrived.
pub(super) struct Lanes {
    ticket: SessionId,
    peer: String,
    taken: Vec<bool>,
    here: BTreeMap<u8, Box<dyn Duplex>>,
    complete: mpsc::Sender<Vec<Box<dyn Duplex>>>,
    watch: Arc<Watch>,
}

impl Lanes {
    /// Expects this many connections from this peer, with this ticket.  Returns the receiver for all of them.
    pub(super) fn new(
        ticket: SessionId,
        peer: String,
        number: u8,
        watch: Arc<Watch>,
    ) -> (Self, mpsc::Receiver<Vec<Box<dyn Duplex>>>) {
        let (complete, connections) = mpsc::channel();
        let lanes = Self {
            ticket,
            peer,
            taken: vec![false; usize::from(number)],
            here: BTreeMap::new(),
            complete,
            watch,
        };
        (lanes, connections)
    }

    /// Admits a connection; returns what can end its waits.
    pub(super) fn take(
        &mut self,
        peer: &str,
        ticket: SessionId,
        lane: u8,
    ) -> Result<Arc<Watch>, &'static str> {
        if self.ticket != ticket || self.peer != peer {
            return Err("the ticket is not this session's");
        }
        match self.taken.get_mut(usize::from(lane)) {
            Some(taken) if !*taken => *taken = true,
            Some(_) => return Err("this connection exists already"),
            None => return Err("there is no connection with this number"),
        }
        Ok(self.watch.clone())
    }

    /// Adds a connection that was admitted.
    pub(super) fn add(&mut self, ticket: SessionId, lane: u8, connection: Box<dyn Duplex>) {
        if self.ticket != ticket {
            return;
        }
        self.here.insert(lane, connection);
        if self.here.len() == self.taken.len() {
            let all = std::mem::take(&mut self.here).into_values().collect();
            // If nobody waits any more, the session is being discarded.
            let _ = self.complete.send(all);
        }
    }
}
