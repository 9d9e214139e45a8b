//! A TCP connection on which nothing blocks for ever.
//!
//! While nothing arrives, the kernel wakes the thread a few times a second.  It then checks whether the job
//! was aborted, the connection has been silent for too long, or a deadline (of a handshake) has passed.  The
//! deadline stops a peer that sends a byte now and then.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::job::Control;

/// Interval between two checks.
const TICK: Duration = Duration::from_millis(200);
/// TCP keepalive: idle time, interval and number of probes.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 4;
/// Longest time for an acknowledgement of sent data, in milliseconds.  It also limits a peer that answers but
/// takes no data: one whose toolstack is building the domain is slow, not dead.
const UNACKNOWLEDGED: u32 = 120_000;
/// The same while a guest is suspended: ten seconds in all.
const PROBE_AFTER_URGENT: Duration = Duration::from_secs(4);
const PROBE_EVERY_URGENT: Duration = Duration::from_secs(2);
const PROBES_URGENT: u32 = 3;
const UNACKNOWLEDGED_URGENT: u32 = 10_000;
/// Longest silence of a peer that has something to do.
const SILENCE: Duration = Duration::from_secs(60);

/// Ends the waits of all connections that share it.
#[derive(Debug, Default)]
pub struct Watch {
    control: Option<Arc<Control>>,
    is_stopped: AtomicBool,
    is_urgent: AtomicBool,
}

impl Watch {
    /// Ends the waits when a job is aborted.
    #[must_use]
    pub fn of(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self {
            control: Some(control),
            ..Self::default()
        })
    }

    /// Ends all waits soon.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
    }

    /// A guest is suspended: from now on, a cut connection or a dead host is noticed within about ten seconds
    /// instead of two minutes.
    pub fn hurry(&self) {
        self.is_urgent.store(true, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        let is_aborted = self.control.as_ref().is_some_and(|job| job.is_aborted());
        self.is_stopped.load(Ordering::Acquire) || is_aborted
    }
}

/// A TCP connection with limits.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<TcpStream>,
    watch: Arc<Watch>,
    deadline: Option<Instant>,
    silence: Duration,
    is_urgent: bool,
}

impl Socket {
    /// Takes a connection over; another holder of it may shut it down.
    ///
    /// # Errors
    /// If the kernel refuses the settings.
    pub fn new(stream: impl Into<Arc<TcpStream>>, watch: Arc<Watch>) -> io::Result<Self> {
        let stream = stream.into();
        stream.set_nodelay(true)?;
        // A host that loses power does not close its connections, so keepalive probes it.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(&stream, PROBE_EVERY)?;
        sockopt::set_tcp_keepcnt(&stream, PROBES)?;
        // There are no probes while sent data is unacknowledged; then this limit applies.
        sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        Ok(Self {
            stream,
            watch,
            deadline: None,
            silence: SILENCE,
            is_urgent: false,
        })
    }

    /// Sets the deadline for everything, whatever arrives meanwhile; `None` lifts it.
    pub const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Sets the deadline, unless an earlier one is set.
    pub fn set_deadline_within(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        self.deadline = Some(
            self.deadline
                .map_or(deadline, |earlier| earlier.min(deadline)),
        );
    }

    /// Sets the longest silence.
    pub const fn set_silence(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// Lets these end the waits from now on.
    pub fn set_watch(&mut self, watch: Arc<Watch>) {
        self.watch = watch;
    }

    /// Shortens the kernel's limits, once.
    fn hurry(&mut self) -> io::Result<()> {
        if !self.is_urgent {
            sockopt::set_tcp_keepidle(&self.stream, PROBE_AFTER_URGENT)?;
            sockopt::set_tcp_keepintvl(&self.stream, PROBE_EVERY_URGENT)?;
            sockopt::set_tcp_keepcnt(&self.stream, PROBES_URGENT)?;
            sockopt::set_tcp_user_timeout(&self.stream, UNACKNOWLEDGED_URGENT)?;
            self.is_urgent = true;
        }
        Ok(())
    }

    fn patiently<T>(
        &mut self,
        mut attempt: impl FnMut(&mut &TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut begun = None;
        loop {
            if let Some(deadline) = self.deadline
                && Instant::now() >= deadline
            {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer did not answer in time",
                ));
            }
            match attempt(&mut &*self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.watch.is_over() {
                        return Err(io::Error::other("stopped"));
                    }
                    if self.watch.is_urgent.load(Ordering::Acquire) {
                        self.hurry()?;
                    }
                    let begun = *begun.get_or_insert_with(Instant::now);
                    if begun.elapsed() >= self.silence {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the peer has been silent for too long",
                        ));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.read(buffer))
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.patiently(|stream| stream.read_vectored(buffers))
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(buffer))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.patiently(|stream| stream.write_vectored(buffers))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt;

    use super::{PROBES_URGENT, Socket, UNACKNOWLEDGED, UNACKNOWLEDGED_URGENT, Watch};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    fn pair() -> (Socket, TcpStream, Arc<Watch>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let watch = Arc::new(Watch::default());
        let socket = Socket::new(listener.accept().unwrap().0, watch.clone()).unwrap();
        (socket, peer, watch)
    }

    #[test]
    fn a_deadline_holds_against_a_peer_that_drips() {
        let (mut socket, mut peer, _watch) = pair();
        socket.set_deadline(Some(Instant::now() + Duration::from_millis(300)));
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let dripping = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) && peer.write_all(b"x").is_ok() {
                thread::yield_now();
            }
        });
        let mut byte = [0];
        let error = loop {
            if let Err(error) = socket.read_exact(&mut byte) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        over.store(true, Ordering::Relaxed);
        drop(socket);
        dripping.join().unwrap();
    }

    #[test]
    fn silence_and_a_stop_end_the_waiting() {
        let (mut socket, _peer, watch) = pair();
        socket.set_silence(Duration::from_millis(1));
        let error = socket.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        socket.set_silence(Duration::from_secs(3600));
        watch.stop();
        assert_eq!(socket.read(&mut [0]).unwrap_err().to_string(), "stopped");
    }

    #[test]
    fn a_connection_in_a_hurry_gives_up_earlier() {
        let (mut socket, _peer, watch) = pair();
        socket.set_silence(Duration::from_millis(1));
        socket.read(&mut [0]).unwrap_err();
        let unacknowledged = |socket: &Socket| sockopt::tcp_user_timeout(&socket.stream).unwrap();
        assert_eq!(unacknowledged(&socket), UNACKNOWLEDGED);
        watch.hurry();
        socket.read(&mut [0]).unwrap_err();
        assert_eq!(unacknowledged(&socket), UNACKNOWLEDGED_URGENT);
        assert_eq!(sockopt::tcp_keepcnt(&socket.stream).unwrap(), PROBES_URGENT);
    }
}
