//! The screen of a Bochs, seen by RFB (RFC 6143): its button for saving the state is on it, and the question
//! where to.  There is no other way to have a state saved.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::trace;

/// Longest time until it has opened its port, and until it has written its state.
const LIMIT: Duration = Duration::from_secs(300);
/// A machine whose question waits for an answer uses less processor time than this in [`LOOK`], seconds.
const NOTHING: f64 = 0.02;
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row at which it did nothing.
const LOOKS: u32 = 4;
/// The button: pixels from the right edge, and from the upper.
const BUTTON: (u16, u16) = (48, 5);
/// The Return key of X11.
const RETURN: u32 = 0xff0d;

/// A connection to it; as Bochs serves one at a time, it is the only one.
#[derive(Debug)]
pub struct Screen {
    stream: TcpStream,
    width: u16,
}

impl Screen {
    /// That of this process, which listens at one port only.
    pub fn find(process: u32) -> Result<Self> {
        let end = Instant::now() + LIMIT;
        let port = loop {
            if let Some(port) = listens(process) {
                break port;
            }
            ensure!(Instant::now() < end, "Bochs opens no port for its screen");
            thread::sleep(Duration::from_millis(50));
        };
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        Self::greet(stream).context("cannot look at Bochs's screen")
    }

    fn greet(mut stream: TcpStream) -> Result<Self> {
        let mut version = [0; 12];
        stream.read_exact(&mut version)?;
        stream.write_all(b"RFB 003.003\n")?;
        let mut security = [0; 4];
        stream.read_exact(&mut security)?;
        ensure!(u32::from_be_bytes(security) == 1, "it wants a password");
        // Others may look at it, too.
        stream.write_all(&[1])?;
        let mut head = [0; 24];
        stream.read_exact(&mut head)?;
        let width = u16::from_be_bytes([head[0], head[1]]);
        let length = u32::from_be_bytes([head[20], head[21], head[22], head[23]]);
        io::copy(
            &mut Read::by_ref(&mut stream).take(length.into()),
            &mut io::sink(),
        )?;
        // What it draws is of no interest, but has to go somewhere.
        let mut drain = stream.try_clone()?;
        thread::spawn(move || io::copy(&mut drain, &mut io::sink()));
        Ok(Self { stream, width })
    }

    /// Have the state saved into a folder below the machine's own, which is made; the machine ends by that.
    pub fn save(&mut self, child: &mut Child, folder: &str) -> Result<()> {
        let home = fs::read_link(format!("/proc/{}/cwd", child.id()))?;
        fs::create_dir(home.join(folder))?;
        let (x, y) = (self.width.saturating_sub(BUTTON.0), BUTTON.1);
        for buttons in [0, 1] {
            self.point(buttons, x, y)?;
        }
        wait_until_idle(child.id())?;
        // Its name; that the machine is not to go on.
        for key in folder.bytes().map(u32::from).chain([RETURN]) {
            self.press(key)?;
        }
        wait_until_idle(child.id())?;
        for key in [u32::from(b'n'), RETURN] {
            self.press(key)?;
        }
        let end = Instant::now() + LIMIT;
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "Bochs does not end");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn point(&mut self, buttons: u8, x: u16, y: u16) -> Result<()> {
        let mut message = vec![5, buttons];
        message.extend(x.to_be_bytes());
        message.extend(y.to_be_bytes());
        Ok(self.stream.write_all(&message)?)
    }

    /// A key goes down and up.
    fn press(&mut self, key: u32) -> Result<()> {
        for down in [1, 0] {
            let mut message = vec![4, down, 0, 0];
            message.extend(key.to_be_bytes());
            self.stream.write_all(&message)?;
        }
        Ok(())
    }
}

/// The first port at which a process listens.
fn listens(process: u32) -> Option<u16> {
    let open = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
    let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets: Vec<String> = links
        .filter_map(|link| {
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    port(&fs::read_to_string("/proc/net/tcp").ok()?, &sockets)
}

/// The port of the kernel's table at which one of these sockets listens.
fn port(table: &str, sockets: &[String]) -> Option<u16> {
    const LISTENS: &str = "0A";
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, LISTENS, _, _, _, _, _, socket, ..] = words[..] else {
            return None;
        };
        let (_, port) = local.split_once(':')?;
        let is_wanted = sockets.iter().any(|wanted| wanted == socket);
        u16::from_str_radix(port, 16).ok().filter(|_| is_wanted)
    })
}

/// Waits until a process does nothing: then it asks something.
fn wait_until_idle(process: u32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let (mut last, mut idle) = (trace::processor_time(process), 0);
    while idle < LOOKS {
        if Instant::now() > end {
            bail!("Bochs does not ask where to save its state");
        }
        thread::sleep(LOOK);
        let now = trace::processor_time(process);
        idle = if now - last < NOTHING { idle + 1 } else { 0 };
        last = now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::port;

    #[test]
    fn the_port_of_a_socket_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:94A1 0100007F:E0AF 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20 0\n   \
            1: 00000000:170C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 78 1 0 100 0\n";
        assert_eq!(port(table, &["77".to_owned(), "78".to_owned()]), Some(5900));
        assert_eq!(port(table, &["77".to_owned()]), None);
    }
}
