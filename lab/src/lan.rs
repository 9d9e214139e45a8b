//! The cable between the hosts: each QEMU gets one end of a socket that carries frames.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};

/// One end for each of `count` hosts; a lone host has no cable.
///
/// # Errors
/// If sockets cannot be made.
pub fn ends(count: usize) -> Result<Vec<Option<OwnedFd>>> {
    match count {
        1 => Ok(vec![None]),
        2 => {
            let (one, other) = UnixStream::pair()?;
            Ok(vec![Some(one.into()), Some(other.into())])
        }
        _ => bail!("the LAN joins two hosts, not {count}"),
    }
}
