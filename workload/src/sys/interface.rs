//! Network interfaces: addresses, flags, features, by ioctl.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use super::check;

/// `ETHTOOL_GSTRINGS` and friends of `linux/ethtool.h`.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// More features than any kernel has; a bound for what the kernel tells.
const FEATURES_MAX: u32 = 256;

/// Any socket will do to name interfaces by.
fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is valid: empty name, zero union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays for the terminating zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn control(code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = socket()?;
    // SAFETY: every SIOC*IF* used here reads or writes one ifreq, which lives.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), code, std::ptr::from_mut(request)) })?;
    Ok(())
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: an all-zero sockaddr is valid.
    let mut generic: libc::sockaddr = unsafe { std::mem::zeroed() };
    generic.sa_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    // sockaddr_in: two bytes of port, then the address in network order.
    for (to, from) in generic.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    generic
}

/// Gives an interface its IPv4 address.
///
/// # Errors
/// As the ioctls: no such interface, not root.
pub fn set_address(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = internet(address);
    control(libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = internet(Ipv4Addr::from_bits(mask));
    control(libc::SIOCSIFNETMASK, &mut request)
}

/// Starts an interface.
///
/// # Errors
/// As the ioctls.
pub fn bring_up(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    control(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    request.ifr_ifru.ifru_flags = flags | up;
    control(libc::SIOCSIFFLAGS, &mut request)
}

/// Sets the largest packet.
///
/// # Errors
/// As the ioctl: the device does not take it.
pub fn set_mtu(name: &str, mtu: i32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu;
    control(libc::SIOCSIFMTU, &mut request)
}

/// Sends everything without a better route to `gateway`.
///
/// # Errors
/// As `SIOCADDRT`.
pub fn add_default_route(gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: an all-zero rtentry is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = internet(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    let socket = socket()?;
    // SAFETY: SIOCADDRT reads one rtentry, which lives.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) })?;
    Ok(())
}

/// One ethtool request: `words` is its structure, read and written by the kernel.
fn ethtool(name: &str, words: &mut [u32]) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    control(libc::SIOCETHTOOL, &mut request)
}

/// The features of a device: name and state (`on`, `off`, with `fixed` if it can not be changed).
///
/// # Errors
/// As the ioctls.
pub fn features(name: &str) -> io::Result<Vec<(String, String)>> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), data[].
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0, 0];
    ethtool(name, &mut info)?;
    let count = info[4].min(FEATURES_MAX) as usize;

    // struct ethtool_gstrings: cmd, string_set, len, data[len * 32].
    let mut strings = vec![0_u32; 3 + count * ETH_GSTRING_LEN / 4];
    strings[0] = ETHTOOL_GSTRINGS;
    strings[1] = ETH_SS_FEATURES;
    strings[2] = u32::try_from(count).unwrap_or(0);
    ethtool(name, &mut strings)?;
    let text: Vec<u8> = strings[3..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();

    // struct ethtool_gfeatures: cmd, size, { available, requested, active, never_changed }[size].
    let blocks = count.div_ceil(32);
    let mut states = vec![0_u32; 2 + blocks * 4];
    states[0] = ETHTOOL_GFEATURES;
    states[1] = u32::try_from(blocks).unwrap_or(0);
    ethtool(name, &mut states)?;

    let bit = |index: usize, word: usize| {
        let block = &states[2 + index / 32 * 4..];
        block[word] >> (index % 32) & 1 == 1
    };
    let mut found: Vec<(String, String)> = text
        .chunks_exact(ETH_GSTRING_LEN)
        .enumerate()
        .filter(|(_, name)| name[0] != 0)
        .map(|(index, name)| {
            let end = name
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(name.len());
            let changeable = bit(index, 0) && !bit(index, 3);
            let state = match (bit(index, 2), changeable) {
                (true, true) => "on",
                (true, false) => "on fixed",
                (false, true) => "off",
                (false, false) => "off fixed",
            };
            (
                String::from_utf8_lossy(&name[..end]).into_owned(),
                state.into(),
            )
        })
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{bring_up, features};

    #[test]
    fn a_name_that_is_none_is_an_error() {
        assert!(bring_up("").is_err());
        assert!(bring_up("an-interface-name-that-is-too-long").is_err());
        assert!(bring_up("none0").is_err());
    }

    #[test]
    fn the_loopback_device_has_named_features() {
        let found = features("lo").expect("ethtool works on lo");
        assert!(
            found.iter().any(|(name, _)| name == "tx-scatter-gather"),
            "{found:?}"
        );
    }
}
