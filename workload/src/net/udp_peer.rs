//! The peer's UDP side: numbered datagrams at a steady pace, and what became of them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::datagram::{Counter, Datagram, HEADER, LARGEST};
use super::thread::spawn;
use crate::sys::time::{Clock, now};

/// Answers that take longer count as lost when a run ends.
const LAST_WAIT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
    guest_count: AtomicU64,
    longest_gap_us: AtomicU64,
    counter: Mutex<Counter>,
}

/// A running stream of datagrams.
pub struct UdpRun {
    shared: Arc<Shared>,
}

impl UdpRun {
    /// Sends a datagram every `interval` to the guest's counter at `to`.
    ///
    /// # Errors
    /// If no socket or thread can be had.
    pub fn start(to: SocketAddr, interval: Duration) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let shared = Arc::<Shared>::default();
        let run = now(Clock::Realtime).unsigned_abs();
        let (sender, its) = (socket.try_clone()?, shared.clone());
        spawn(move || send(&sender, &its, run, interval))?;
        let its = shared.clone();
        spawn(move || receive(&socket, &its, run))?;
        Ok(Self { shared })
    }

    /// The figures so far.  `lost` are those not answered (yet); `lost_on_the_way_out` those that
    /// the guest, by its last answer, had not received either.
    #[must_use]
    pub fn figures(&self) -> Value {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let counter = self
            .shared
            .counter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sent = read(&self.shared.sent);
        json!({
            "sent": sent, "answered": counter.received,
            "lost": sent.saturating_sub(counter.received),
            "lost_on_the_way_out": sent.saturating_sub(read(&self.shared.guest_count)),
            "send_errors": read(&self.shared.refused),
            "duplicates": counter.duplicates, "reordered": counter.reordered,
            "corrupt": counter.corrupt,
            "longest_gap_ms": read(&self.shared.longest_gap_us) / 1000,
            "ok": counter.corrupt == 0,
        })
    }

    /// Stops sending, waits a moment for the last answers; the final figures.
    #[must_use]
    pub fn finish(self) -> Value {
        self.shared.stop.store(true, Ordering::Relaxed);
        let limit = Instant::now() + LAST_WAIT;
        while Instant::now() < limit && self.figures()["lost"] != 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.figures()
    }
}

fn send(socket: &UdpSocket, shared: &Shared, run: u64, interval: Duration) {
    let mut buffer = [0; LARGEST];
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let datagram = Datagram {
            run,
            number,
            count: 0,
        };
        let body = usize::try_from(number % 1000).unwrap_or(0);
        let length = datagram.write(&mut buffer, HEADER + body);
        match socket.send(&buffer[..length]) {
            Ok(_) => {
                number += 1;
                shared.sent.store(number, Ordering::Relaxed);
            }
            // An ICMP answer to an earlier one, or no route: the guest is not there just now.
            Err(_) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(interval);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared, run: u64) {
    let mut buffer = [0; 2048];
    let mut last = Instant::now();
    let mut started = false;
    // Goes on after the last datagram was sent; ends with the process or when the run is over.
    let mut quiet_since_stop = None;
    loop {
        let got = socket.recv(&mut buffer);
        if started && !shared.stop.load(Ordering::Relaxed) {
            let micros = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.longest_gap_us.fetch_max(micros, Ordering::Relaxed);
        }
        if let Ok(length) = got {
            let datagram = Datagram::read(&buffer[..length]).filter(|datagram| datagram.run == run);
            if let Some(datagram) = datagram {
                shared
                    .guest_count
                    .fetch_max(datagram.count, Ordering::Relaxed);
            }
            let mut counter = shared
                .counter
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            counter.count(datagram);
            started = true;
            last = Instant::now();
        }
        if shared.stop.load(Ordering::Relaxed) {
            let since = *quiet_since_stop.get_or_insert_with(Instant::now);
            if since.elapsed() > LAST_WAIT + LAST_WAIT {
                return;
            }
        }
    }
}
