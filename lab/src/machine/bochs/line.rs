//! A serial port of Bochs's, as a TCP connection: the only kind that it takes a byte from no sooner than the
//! machine has taken the one before, so that none is lost.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest time until Bochs connects.
const CONNECT: Duration = Duration::from_secs(120);

/// One that Bochs is to connect to.
pub struct Line {
    listener: TcpListener,
    address: SocketAddr,
}

impl Line {
    /// At a port of this computer's that is free.
    pub fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot listen on 127.0.0.1 for Bochs")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where that is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for Bochs, which is this process.
    pub fn accept(self, child: &mut Child) -> Result<Wire> {
        let end = Instant::now() + CONNECT;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(Wire(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = child.try_wait()? {
                bail!("Bochs ended at once: {status}");
            }
            if Instant::now() > end {
                bail!("Bochs did not connect within {} s", CONNECT.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One that Bochs has connected to.
pub struct Wire(TcpStream);

impl Wire {
    /// Both ways of it.
    pub fn split(self) -> Result<(Self, impl Write + use<>)> {
        let writer = self.0.try_clone()?;
        Ok((self, writer))
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Bochs sends each byte alone, and the next ones only after this side's kernel has acknowledged it.
        // The kernel forgets now and then that it is not to wait with that.
        let _ = rustix::net::sockopt::set_tcp_quickack(&self.0, true);
        self.0.read(buffer)
    }
}
