//! The guest's console ring, relayed both ways.
//!
//! The guest's page never changes; the host's is replaced by every migration.  What the guest has
//! written stays in its own ring until the host's has room, so nothing is lost when the host is
//! slow or away.

use xen_abi::console::{IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use xen_abi::{Mfn, Port};

use crate::mem::Frames;

/// One direction of a ring page.
#[derive(Clone, Copy)]
struct Channel {
    data: usize,
    size: u32,
    consumer: usize,
    producer: usize,
}

const TO_HOST: Channel = Channel {
    data: OUT,
    size: OUT_SIZE,
    consumer: OUT_CONS,
    producer: OUT_PROD,
};
const TO_GUEST: Channel = Channel {
    data: IN,
    size: IN_SIZE,
    consumer: IN_CONS,
    producer: IN_PROD,
};

/// The relay.
#[derive(Debug)]
pub struct Console {
    /// The ring that the guest knows.
    guest: Mfn,
    /// The guest's port.
    port: Port,
    /// The ring that the host gave us.
    host: Mfn,
}

/// Who has to be told that something moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The host's daemon: there is output, or room for input.
    pub notify_host: bool,
    /// The guest: there is input, or room for output.
    pub raise_guest: bool,
}

impl Console {
    /// Makes a relay between the guest's ring and the host's.
    pub fn new(guest: Mfn, port: Port, host: Mfn) -> Self {
        Self { guest, port, host }
    }

    /// The guest's port.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The host gave us another ring.
    pub fn reattach(&mut self, host: Mfn) {
        self.host = host;
    }

    /// Whether there is output of the guest that the host's ring had no room for.
    pub fn has_output(&self, frames: &dyn Frames) -> bool {
        frames.load32(self.guest, OUT_CONS) != frames.load32(self.guest, OUT_PROD)
    }

    /// Moves what can be moved, in both directions.
    pub fn relay(&self, frames: &dyn Frames) -> Moved {
        let out = copy(frames, TO_HOST, self.guest, self.host);
        let input = copy(frames, TO_GUEST, self.host, self.guest);
        Moved {
            notify_host: out || input,
            raise_guest: out || input,
        }
    }
}

/// Moves bytes of one direction from ring page `from` to ring page `to`.
fn copy(frames: &dyn Frames, channel: Channel, from: Mfn, to: Mfn) -> bool {
    let Channel {
        data,
        size,
        consumer,
        producer,
    } = channel;
    // Also `put`, which is ours, is read back from a page that the other end can write. The masks
    // below keep any value inside the buffer.
    let mut take = frames.load32(from, consumer);
    let put = frames.load32(to, producer);
    let available = frames.load32(from, producer).wrapping_sub(take);
    let used = put.wrapping_sub(frames.load32(to, consumer));
    // Indexes are somebody else's: nonsense moves nothing rather than too much.
    if available > size || used > size {
        return false;
    }
    let count = available.min(size - used);
    // The bytes, and the room for them, must not be touched before the indexes that vouch for them.
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    for offset in 0..count {
        let byte = frames.load8(from, data + (take & (size - 1)) as usize);
        frames.store8(
            to,
            data + (put.wrapping_add(offset) & (size - 1)) as usize,
            byte,
        );
        take = take.wrapping_add(1);
    }
    // The bytes are there before one index says so, and copied before the other gives them up.
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    frames.store32(to, producer, put.wrapping_add(count));
    frames.store32(from, consumer, take);
    count > 0
}

#[cfg(test)]
mod tests {
    use super::{Console, Moved};
    use crate::mem::Frames;
    use crate::testing::FakeFrames;
    use xen_abi::console::{IN, IN_CONS, IN_PROD, OUT, OUT_CONS, OUT_PROD};
    use xen_abi::{Mfn, Port};

    const GUEST: Mfn = Mfn(0);
    const HOST: Mfn = Mfn(1);

    fn setup() -> (FakeFrames, Console) {
        (FakeFrames::new(2), Console::new(GUEST, Port(2), HOST))
    }

    #[test]
    fn output_waits_for_a_slow_host() {
        let (frames, console) = setup();
        // The host's ring is full but for three bytes.
        frames.store32(HOST, OUT_PROD, 2045);
        frames.write(GUEST, OUT, b"hello");
        frames.store32(GUEST, OUT_PROD, 5);
        assert!(console.relay(&frames).notify_host);
        assert_eq!(frames.load32(GUEST, OUT_CONS), 3);
        assert_eq!(console.relay(&frames), Moved::default());
        frames.store32(HOST, OUT_CONS, 2045);
        assert!(console.relay(&frames).notify_host);
        let mut got = [0; 2];
        frames.read(HOST, OUT, &mut got);
        assert_eq!(&got, b"lo", "wrapped around the end");
    }

    #[test]
    fn input_reaches_the_guest() {
        let (frames, console) = setup();
        frames.write(HOST, IN, b"ls\n");
        frames.store32(HOST, IN_PROD, 3);
        assert!(console.relay(&frames).raise_guest);
        assert_eq!(frames.load32(GUEST, IN_PROD), 3);
        assert_eq!(frames.load32(HOST, IN_CONS), 3);
    }

    #[test]
    fn nonsense_indexes_move_nothing() {
        let (frames, console) = setup();
        frames.store32(GUEST, OUT_PROD, 0x8000_0000);
        assert_eq!(console.relay(&frames), Moved::default());
        assert_eq!(frames.load32(HOST, OUT_PROD), 0);
    }
}
