//! The guest's side: TCP echo and UDP counter.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::datagram::{Counter, Datagram};
use super::thread::spawn;
use super::{BULK_PORT, COUNTER_PORT, ECHO_PORT, bulk, is_timeout};

/// More connections at once are turned away; each costs a thread.
const MOST_CONNECTIONS: u64 = 256;

#[derive(Default)]
struct Figures {
    accepted: AtomicU64,
    open: AtomicU64,
    broken: AtomicU64,
    refused: AtomicU64,
    echoed: AtomicU64,
}

/// The services, running until the process ends.
pub struct Services {
    figures: Arc<Figures>,
    counter: Arc<Mutex<Counter>>,
    /// Where the echo listens.
    pub echo: SocketAddr,
    /// Where the counter listens.
    pub udp: SocketAddr,
    /// Where the bulk sink and source listens.
    pub bulk: SocketAddr,
}

impl Services {
    /// Starts all services on the usual ports of all addresses.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn start() -> io::Result<Self> {
        Self::start_on([ECHO_PORT, COUNTER_PORT, BULK_PORT])
    }

    /// Starts the services on the ports for echo, counter and bulk; 0 for any.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn start_on(ports: [u16; 3]) -> io::Result<Self> {
        let any = Ipv4Addr::UNSPECIFIED;
        let listener = TcpListener::bind((any, ports[0]))?;
        let socket = UdpSocket::bind((any, ports[1]))?;
        let this = Self {
            figures: Arc::default(),
            counter: Arc::default(),
            echo: listener.local_addr()?,
            udp: socket.local_addr()?,
            bulk: bulk::serve(SocketAddr::from((any, ports[2])))?,
        };
        let figures = this.figures.clone();
        spawn(move || accept(&listener, &figures))?;
        let counter = this.counter.clone();
        spawn(move || count(&socket, &counter))?;
        Ok(this)
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Value {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "tcp": {
                "accepted": read(&self.figures.accepted), "open": read(&self.figures.open),
                "broken": read(&self.figures.broken), "refused": read(&self.figures.refused),
                "echoed_bytes": read(&self.figures.echoed),
            },
            "udp": counter.figures(),
        })
    }
}

fn accept(listener: &TcpListener, figures: &Arc<Figures>) {
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            // Out of descriptors, most likely: give the others time to end.
            std::thread::sleep(std::time::Duration::from_millis(50));
            continue;
        };
        if figures.open.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            figures.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        figures.accepted.fetch_add(1, Ordering::Relaxed);
        figures.open.fetch_add(1, Ordering::Relaxed);
        let its = figures.clone();
        let started = spawn(move || {
            if echo(connection, &its.echoed).is_err() {
                its.broken.fetch_add(1, Ordering::Relaxed);
            }
            its.open.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            figures.refused.fetch_add(1, Ordering::Relaxed);
            figures.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn echo(mut connection: TcpStream, echoed: &AtomicU64) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error),
        };
        connection.write_all(&buffer[..length])?;
        echoed.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn count(socket: &UdpSocket, counter: &Mutex<Counter>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let datagram = Datagram::read(&buffer[..length]);
        let count = {
            let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
            counter.count(datagram);
            counter.received
        };
        if let Some(datagram) = datagram {
            let answer = Datagram { count, ..datagram };
            let length = answer.write(&mut buffer, length);
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}
