//! Handshakes that are pending: their number is bounded, and none of them keeps another out for long.
//!
//! Each connection takes a thread and a descriptor until its handshake is done or has timed out after ten
//! seconds.  A connection above the limit is not refused: the oldest one *from the same address* is closed
//! instead.  A handshake that succeeds takes a moment, so a connection that idles soon is the oldest.  Addresses
//! of peers have a higher limit (an evacuation opens hundreds of connections at once), and connections from
//! other addresses do not count against it.

use std::collections::VecDeque;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;

/// Most connections from one address of a peer.
const OF_A_PEER: usize = 512;
/// Most from any other address.
const OF_OTHERS: usize = 16;
/// Most from all other addresses together.
const OF_ALL_OTHERS: usize = 64;
/// Most addresses that peers are known by.
const KNOWN_MOST: usize = 256;

/// Where a connection comes from.  With IPv6 this is the /64 network, because a host has all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                IpAddr::V6(network.into())
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The pending handshakes of a daemon.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    pending: Mutex<Pending<Arc<TcpStream>>>,
}

/// A pending connection; it stops counting when this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    handshakes: Arc<Handshakes>,
    number: u64,
}

#[derive(Debug)]
struct Pending<T> {
    /// The oldest first.
    held: VecDeque<(u64, Origin, T)>,
    next: u64,
    /// Where peers connect from; the latest last.
    known: VecDeque<Origin>,
}

impl Handshakes {
    /// Peers are known by these addresses.
    pub(super) fn new(peers: impl IntoIterator<Item = IpAddr>) -> Arc<Self> {
        let handshakes = Self::default();
        for address in peers {
            handshakes.know(address);
        }
        Arc::new(handshakes)
    }

    /// A peer has shown its certificate from this address.
    pub(super) fn know(&self, address: IpAddr) {
        self.pending.lock().know(address.into());
    }

    /// Takes a connection in; whoever had to make way for it is cut off.
    pub(super) fn admit(self: &Arc<Self>, stream: &Arc<TcpStream>, from: SocketAddr) -> Admitted {
        let (number, evicted) = self.pending.lock().enter(from.ip().into(), stream.clone());
        for stream in evicted {
            // Its thread sees the end, and says whom it was.
            let _ = stream.shutdown(Shutdown::Both);
        }
        Admitted {
            handshakes: self.clone(),
            number,
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.handshakes.pending.lock().leave(self.number);
    }
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self {
            held: VecDeque::new(),
            next: 0,
            known: VecDeque::new(),
        }
    }
}

impl<T> Pending<T> {
    fn know(&mut self, origin: Origin) {
        self.known.retain(|known| *known != origin);
        if self.known.len() == KNOWN_MOST {
            self.known.pop_front();
        }
        self.known.push_back(origin);
    }

    /// Gives the number of the one that enters, and those that have to leave for it.
    fn enter(&mut self, origin: Origin, what: T) -> (u64, Vec<T>) {
        let is_known = self.known.contains(&origin);
        let most = if is_known { OF_A_PEER } else { OF_OTHERS };
        let mut evicted = Vec::new();
        while self.held.iter().filter(|held| held.1 == origin).count() >= most {
            evicted.extend(self.evict(|_, held| held == origin));
        }
        let others = |known: &VecDeque<Origin>, held: Origin| !known.contains(&held);
        while !is_known
            && self
                .held
                .iter()
                .filter(|held| others(&self.known, held.1))
                .count()
                >= OF_ALL_OTHERS
        {
            evicted.extend(self.evict(others));
        }
        let number = self.next;
        self.next += 1;
        self.held.push_back((number, origin, what));
        (number, evicted)
    }

    /// Takes out the oldest for which this holds.
    fn evict(&mut self, is_it: impl Fn(&VecDeque<Origin>, Origin) -> bool) -> Option<T> {
        let at = self.held.iter().position(|held| is_it(&self.known, held.1));
        at.and_then(|at| self.held.remove(at)).map(|held| held.2)
    }

    fn leave(&mut self, number: u64) {
        self.held.retain(|held| held.0 != number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{KNOWN_MOST, OF_A_PEER, OF_ALL_OTHERS, OF_OTHERS, Origin, Pending};

    fn v4(last: u8) -> Origin {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)).into()
    }

    #[test]
    fn the_oldest_of_the_same_address_makes_way() {
        let mut pending = Pending::default();
        let (_, none) = pending.enter(v4(9), "other");
        assert!(none.is_empty());
        for _ in 0..OF_OTHERS {
            assert!(pending.enter(v4(1), "idle").1.is_empty());
        }
        let (number, evicted) = pending.enter(v4(1), "new");
        assert_eq!(evicted, ["idle"]);
        pending.leave(number);
        assert!(pending.enter(v4(1), "newer").1.is_empty());
    }

    #[test]
    fn strangers_from_everywhere_take_nothing_from_a_peer() {
        let mut pending = Pending::default();
        pending.know(v4(1));
        for _ in 0..OF_A_PEER {
            assert!(pending.enter(v4(1), "peer").1.is_empty());
        }
        for last in 2..200 {
            pending.enter(v4(last), "stranger");
        }
        let count = |what| pending.held.iter().filter(|held| held.2 == what).count();
        assert_eq!(
            (count("peer"), count("stranger")),
            (OF_A_PEER, OF_ALL_OTHERS)
        );
        assert_eq!(pending.enter(v4(1), "peer").1, ["peer"]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_the_other() {
        let v6 = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:2"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped();
        assert_eq!(Origin::from(IpAddr::V6(mapped)), v4(7));
        assert_ne!(Origin::from(IpAddr::V6(Ipv6Addr::LOCALHOST)), v4(7));
    }

    #[test]
    fn addresses_of_peers_are_bounded_and_the_latest_count() {
        let mut pending: Pending<()> = Pending::default();
        for number in 0..1000_u32 {
            pending.know(IpAddr::V4(number.into()).into());
        }
        assert_eq!(pending.known.len(), KNOWN_MOST);
        assert!(pending.known.contains(&IpAddr::V4(999.into()).into()));
    }
}
