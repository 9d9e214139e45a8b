//! The cable between the hosts: each QEMU gets one end of a socket that carries frames.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use anyhow::{Result, bail};

/// One end for each of `count` hosts; a lone host has no cable.
///
/// A stream is faster, for more fits into it.  With `outlives_hosts` each frame is one datagram: a host
/// that is switched off in the middle of one leaves no half of it to the next that gets its end.
///
/// # Errors
/// If sockets cannot be made.
pub fn ends(count: usize, outlives_hosts: bool) -> Result<Vec<Option<OwnedFd>>> {
    let pair: (OwnedFd, OwnedFd) = match count {
        1 => return Ok(vec![None]),
        2 if outlives_hosts => {
            let (one, other) = UnixDatagram::pair()?;
            (one.into(), other.into())
        }
        2 => {
            let (one, other) = UnixStream::pair()?;
            (one.into(), other.into())
        }
        _ => bail!("the LAN joins two hosts, not {count}"),
    };
    Ok(vec![Some(pair.0), Some(pair.1)])
}
