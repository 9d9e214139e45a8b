//! The peer's TCP side: connections that must never break, and streams that must come back whole.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::is_timeout;
use super::stream::Stream;
use super::thread::spawn;

/// How the connections are driven.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest's echo.
    pub to: SocketAddr,
    /// Connections at once.
    pub connections: usize,
    /// Bytes a message, at most.
    pub message: usize,
    /// Pause between two messages of a connection.
    pub interval: Duration,
    /// Bytes a connection may have on their way, at most.
    pub window: u64,
    /// How long nothing may come back before the connection counts as broken.
    pub patience: Duration,
    /// How long connecting may take, with retries.
    pub connect: Duration,
}

#[derive(Default)]
struct Figures {
    stop: AtomicBool,
    connected: AtomicU64,
    alive: AtomicU64,
    finished: AtomicU64,
    breaks: AtomicU64,
    corrupt: AtomicU64,
    failed_connects: AtomicU64,
    sent: AtomicU64,
    returned: AtomicU64,
    longest_gap_us: AtomicU64,
}

/// A running set of connections.
pub struct TcpRun {
    figures: Arc<Figures>,
    connections: u64,
}

impl TcpRun {
    /// Starts all connections.
    ///
    /// # Errors
    /// If no threads can be had.
    pub fn start(options: &Options) -> io::Result<Self> {
        let figures = Arc::<Figures>::default();
        for index in 0..options.connections {
            let (options, figures) = (options.clone(), figures.clone());
            spawn(move || {
                run(&options, &figures, index as u64);
                figures.finished.fetch_add(1, Ordering::Relaxed);
            })?;
        }
        Ok(Self {
            figures,
            connections: options.connections as u64,
        })
    }

    /// The figures so far; `ok` is false from the first break or wrong byte on.
    #[must_use]
    pub fn figures(&self) -> Value {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let figures = &self.figures;
        let bad = read(&figures.breaks) + read(&figures.corrupt) + read(&figures.failed_connects);
        json!({
            "connections": self.connections, "connected": read(&figures.connected),
            "alive": read(&figures.alive), "breaks": read(&figures.breaks),
            "corrupt": read(&figures.corrupt), "failed_connects": read(&figures.failed_connects),
            "sent_bytes": read(&figures.sent), "returned_bytes": read(&figures.returned),
            "longest_gap_ms": read(&figures.longest_gap_us) / 1000, "ok": bad == 0,
        })
    }

    /// Stops sending, waits until everything has come back, and gives the final figures.
    #[must_use]
    pub fn finish(self) -> Value {
        self.figures.stop.store(true, Ordering::Relaxed);
        // Each connection ends by itself: it is closed, or its patience ends.
        while self.figures.finished.load(Ordering::Relaxed) < self.connections {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.figures()
    }
}

fn connect(options: &Options, figures: &Figures) -> io::Result<TcpStream> {
    let limit = Instant::now() + options.connect;
    loop {
        let wait = Duration::from_secs(2);
        match TcpStream::connect_timeout(&options.to, wait) {
            Ok(connection) => {
                connection.set_nodelay(true)?;
                connection.set_read_timeout(Some(Duration::from_millis(100)))?;
                return Ok(connection);
            }
            Err(error) => {
                if Instant::now() >= limit || figures.stop.load(Ordering::Relaxed) {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn run(options: &Options, figures: &Arc<Figures>, index: u64) {
    let Ok(connection) = connect(options, figures) else {
        figures.failed_connects.fetch_add(1, Ordering::Relaxed);
        return;
    };
    figures.connected.fetch_add(1, Ordering::Relaxed);
    figures.alive.fetch_add(1, Ordering::Relaxed);
    let key = index ^ crate::sys::time::tsc() << 8;
    let progress = Arc::new(Progress::default());
    let writer = connection.try_clone().and_then(|connection| {
        let (options, figures, progress) = (options.clone(), figures.clone(), progress.clone());
        spawn(move || {
            if send(connection, &options, &figures, &progress, key).is_err() {
                progress.send_failed.store(true, Ordering::Relaxed);
            }
            progress.send_ended.store(true, Ordering::Release);
        })
    });
    if writer.is_err() {
        progress.send_failed.store(true, Ordering::Relaxed);
        progress.send_ended.store(true, Ordering::Release);
    }
    match receive(&connection, options, figures, &progress, key) {
        Ok(()) => {}
        Err(Ended::Broken) => {
            figures.breaks.fetch_add(1, Ordering::Relaxed);
        }
        Err(Ended::Corrupt) => {
            figures.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }
    // Wakes a writer that is stuck in a full socket.
    let _ = connection.shutdown(Shutdown::Both);
    figures.alive.fetch_sub(1, Ordering::Relaxed);
}

/// A writer that waits for its window looks this often if it is to stop.
const LOOK: Duration = Duration::from_millis(200);

/// What the two threads of a connection tell each other.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    returned: Mutex<u64>,
    /// More has returned.
    room: Condvar,
    send_ended: AtomicBool,
    send_failed: AtomicBool,
    receive_ended: AtomicBool,
}

impl Progress {
    /// The stream is back as far as to this position.
    fn returned(&self, position: u64) {
        *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = position;
        self.room.notify_one();
    }

    /// If the stream is back as far as to this position; waits a moment for it.
    fn is_back(&self, position: u64) -> bool {
        let returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        let (returned, _) = self
            .room
            .wait_timeout_while(returned, LOOK, |returned| *returned < position)
            .unwrap_or_else(PoisonError::into_inner);
        *returned >= position
    }
}

enum Ended {
    Broken,
    Corrupt,
}

fn send(
    mut connection: TcpStream,
    options: &Options,
    figures: &Figures,
    progress: &Progress,
    key: u64,
) -> io::Result<()> {
    let mut stream = Stream::new(key);
    let mut buffer = vec![0; options.message];
    let mut turn = key;
    while !figures.stop.load(Ordering::Relaxed) && !progress.receive_ended.load(Ordering::Relaxed) {
        let next = stream.position() + options.message as u64;
        if !progress.is_back(next.saturating_sub(options.window)) {
            continue;
        }
        turn = turn.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let length = 1 + (turn >> 33) as usize % options.message;
        stream.fill(&mut buffer[..length]);
        // Before the write: the bytes may be back before the writer runs again.
        progress.sent.store(stream.position(), Ordering::Release);
        connection.write_all(&buffer[..length])?;
        figures.sent.fetch_add(length as u64, Ordering::Relaxed);
        std::thread::sleep(options.interval);
    }
    // First the note, then the deed: the end of the stream may be back before we run again.
    progress.send_ended.store(true, Ordering::Release);
    connection.shutdown(Shutdown::Write)
}

fn receive(
    mut connection: &TcpStream,
    options: &Options,
    figures: &Figures,
    progress: &Progress,
    key: u64,
) -> Result<(), Ended> {
    let mut stream = Stream::new(key);
    let mut buffer = vec![0; 16 << 10];
    let mut last = Instant::now();
    let result = loop {
        if progress.send_failed.load(Ordering::Relaxed) {
            break Err(Ended::Broken);
        }
        let got = connection.read(&mut buffer);
        let gap = last.elapsed();
        if stream.position() < progress.sent.load(Ordering::Acquire) {
            let micros = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
            figures.longest_gap_us.fetch_max(micros, Ordering::Relaxed);
        } else {
            last = Instant::now();
        }
        match got {
            Ok(0) => {
                // The end is right only when we have asked for it and have everything.
                let all = progress.send_ended.load(Ordering::Acquire)
                    && stream.position() == progress.sent.load(Ordering::Acquire);
                break if all { Ok(()) } else { Err(Ended::Broken) };
            }
            Ok(length) => {
                last = Instant::now();
                if stream.check(&buffer[..length]).is_err() {
                    break Err(Ended::Corrupt);
                }
                progress.returned(stream.position());
                figures.returned.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) => {
                if gap > options.patience {
                    break Err(Ended::Broken);
                }
            }
            Err(_) => break Err(Ended::Broken),
        }
    };
    progress.receive_ended.store(true, Ordering::Relaxed);
    result
}
