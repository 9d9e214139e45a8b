//! The datagrams of the UDP counter, and what either side counts about them.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// Bytes before the body: mark, run, number, the guest's count.
pub const HEADER: usize = 32;
/// The largest datagram (bytes); fits an Ethernet packet.
pub const LARGEST: usize = 1400;

const MARK: u64 = 0x7064_7520_766f_6d6e;

/// One datagram's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// The peer's run.
    pub run: u64,
    /// The number within the run, from 0.
    pub number: u64,
    /// In answers: how many the guest had received in this run, this one included.
    pub count: u64,
}

fn body(run: u64, number: u64, index: usize) -> u8 {
    let mixed = (run ^ number.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.rotate_left((index % 64) as u32).to_le_bytes()[0] ^ (index % 251) as u8
}

impl Datagram {
    /// Writes a datagram of `length` bytes (at least the header) to `buffer`.
    pub fn write(&self, buffer: &mut [u8], length: usize) -> usize {
        let length = length.clamp(HEADER, LARGEST).min(buffer.len());
        let fields = [MARK, self.run, self.number, self.count];
        for (to, field) in buffer.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        for (index, byte) in buffer[HEADER..length].iter_mut().enumerate() {
            *byte = body(self.run, self.number, index);
        }
        length
    }

    /// Reads a datagram and checks its body; `None` if it is not one, or changed on the way.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| {
            let bytes = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let this = Self {
            run: field(1)?,
            number: field(2)?,
            count: field(3)?,
        };
        let whole = bytes[HEADER..]
            .iter()
            .enumerate()
            .all(|(index, &byte)| byte == body(this.run, this.number, index));
        (field(0)? == MARK && whole).then_some(this)
    }
}

/// What a receiver knows of one run.
#[derive(Debug, Clone, Default)]
pub struct Counter {
    run: u64,
    /// Different datagrams received.
    pub received: u64,
    /// Datagrams received again.
    pub duplicates: u64,
    /// Datagrams that came after a later one.
    pub reordered: u64,
    /// Datagrams that were not whole.
    pub corrupt: u64,
    next: u64,
    /// Which of the last numbers below `next` came (front: `next` - 1).
    recent: VecDeque<bool>,
}

/// How far back a duplicate is told from a late one.
const RECENT: usize = 4096;

impl Counter {
    /// Counts a datagram, `None` for a corrupt one.
    pub fn count(&mut self, datagram: Option<Datagram>) {
        let Some(datagram) = datagram else {
            self.corrupt += 1;
            return;
        };
        if datagram.run != self.run {
            *self = Self {
                run: datagram.run,
                ..Self::default()
            };
        }
        if datagram.number >= self.next {
            let missing = datagram.number - self.next;
            for _ in 0..missing.min(RECENT as u64) {
                self.recent.push_front(false);
            }
            self.recent.push_front(true);
            self.recent.truncate(RECENT);
            self.next = datagram.number.saturating_add(1);
            self.received += 1;
            return;
        }
        let age = usize::try_from(self.next - 1 - datagram.number).unwrap_or(usize::MAX);
        match self.recent.get_mut(age) {
            Some(seen) if !*seen => {
                *seen = true;
                self.received += 1;
                self.reordered += 1;
            }
            _ => self.duplicates += 1,
        }
    }

    /// The figures as JSON.
    #[must_use]
    pub fn figures(&self) -> Value {
        json!({
            "run": format!("{:x}", self.run), "received": self.received,
            "missing": self.next.saturating_sub(self.received), "duplicates": self.duplicates,
            "reordered": self.reordered, "corrupt": self.corrupt,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, Datagram, LARGEST};
    use proptest::prelude::{any, proptest};

    fn datagram(number: u64) -> Datagram {
        Datagram {
            run: 9,
            number,
            count: 0,
        }
    }

    #[test]
    fn loss_order_and_repetition_are_counted() {
        let mut counter = Counter::default();
        for number in [0, 1, 4, 3, 3, 5, 1] {
            counter.count(Some(datagram(number)));
        }
        counter.count(None);
        assert_eq!((counter.received, counter.reordered), (5, 1));
        assert_eq!((counter.duplicates, counter.corrupt), (2, 1));
        assert_eq!(counter.figures()["missing"], 1);
        counter.count(Some(Datagram {
            run: 10,
            ..datagram(u64::MAX)
        }));
        assert_eq!(counter.received, 1);
    }

    #[test]
    fn a_changed_datagram_is_none() {
        let mut bytes = [0; LARGEST];
        let length = datagram(7).write(&mut bytes, 900);
        assert_eq!(Datagram::read(&bytes[..length]), Some(datagram(7)));
        bytes[700] ^= 4;
        assert_eq!(Datagram::read(&bytes[..length]), None);
        assert_eq!(Datagram::read(&bytes[..20]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            assert_eq!(Datagram::read(&bytes), None);
        }
    }
}
