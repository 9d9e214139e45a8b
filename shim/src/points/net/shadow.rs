//! What was sent and is not answered yet: a number for each part at the host, so that the host's half can be
//! thrown away at a migration.

use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::netif::RING_ENTRIES;

use crate::host::HostRef;

/// A part at the host.
#[derive(Debug)]
pub(super) struct Sent {
    pub grant: HostRef,
    pub owner: Owner,
    /// What the host answered; the part lives on while the backend still has its page in use.
    pub answer: Option<i16>,
}

/// Who waits for the answer.
#[derive(Debug)]
pub(super) enum Owner {
    /// The guest, under a name of its own, with the hold of its frame; the extras that came with
    /// the part are answered with it.
    Guest { id: u16, extras: u32, frame: Mfn },
    /// We ourselves.
    Shim,
}

/// A number for each part at the host.
#[derive(Debug)]
pub(super) struct Shadow {
    /// The parts, by their numbers.
    pub sent: Vec<Option<Sent>>,
    /// How often a number was used, which is part of the name at the host.
    uses: Vec<u8>,
    free: Vec<u8>,
    /// Extras that the host has not answered.
    pub extras: u32,
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            sent: (0..RING_ENTRIES).map(|_| None).collect(),
            uses: [0; RING_ENTRIES].into(),
            free: (0..=u8::MAX).rev().collect(),
            extras: 0,
        }
    }
}

impl Shadow {
    /// Number of parts that there is room for.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Number of parts at the host.
    pub fn in_flight(&self) -> usize {
        RING_ENTRIES - self.room()
    }

    /// Notes a part, for which there must be room, and returns the name that the host will know it
    /// by.
    pub fn add(&mut self, grant: HostRef, owner: Owner) -> u16 {
        let number = self.free.pop().expect("the caller looked for room");
        let index = usize::from(number);
        self.sent[index] = Some(Sent {
            grant,
            owner,
            answer: None,
        });
        // The 16 bits of an id leave one byte for this. So a second answer to a part names nobody,
        // unless it comes 256 uses late; and then it ends a part early, which costs a packet and no
        // page: the grant decides.
        self.uses[index] = self.uses[index].wrapping_add(1);
        u16::from_le_bytes([number, self.uses[index]])
    }

    /// Returns the part that the host names, if it waits for an answer.
    pub fn named(&mut self, name: u16) -> Option<(u8, &mut Sent)> {
        let [number, uses] = name.to_le_bytes();
        let index = usize::from(number);
        if self.uses[index] != uses {
            return None;
        }
        let sent = self.sent[index].as_mut()?;
        sent.answer.is_none().then_some((number, sent))
    }

    /// Takes a part out.
    pub fn remove(&mut self, number: u8) -> Option<Sent> {
        let sent = self.sent[usize::from(number)].take()?;
        self.free.push(number);
        Some(sent)
    }

    /// Takes all parts out.
    pub fn drain(&mut self) -> impl Iterator<Item = Sent> + '_ {
        self.extras = 0;
        (0..=u8::MAX).filter_map(|number| self.remove(number))
    }
}
