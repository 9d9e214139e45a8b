//! Bringing up the guest's network from an order such as `net start ip=192.0.2.10/24`.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::orders::{Order, OrderError};
use crate::sys::interface;

/// What is to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The interface's name.
    pub device: String,
    /// Address and prefix length; without it only the loopback is used.
    pub address: Option<(Ipv4Addr, u8)>,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
    /// The largest packet, if not the device's default.
    pub mtu: Option<i32>,
    /// How long to wait for the device to appear.
    pub wait: Duration,
}

impl Options {
    /// Takes the options from an order: `dev= ip=ADDRESS/PREFIX gw= mtu= wait=SECONDS`.
    ///
    /// # Errors
    /// Unknown or senseless options.
    pub fn from_order(order: &Order) -> Result<Self, OrderError> {
        order.allow(&["dev", "ip", "gw", "mtu", "wait"])?;
        let bad = |key: &str, text: &str| OrderError(format!("net: {key}={text} is no address"));
        let address = order.text("ip").map(|text| {
            let (address, prefix) = text.split_once('/').unwrap_or((text, "24"));
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
            address
                .parse()
                .ok()
                .zip(prefix)
                .ok_or_else(|| bad("ip", text))
        });
        let gateway = order
            .text("gw")
            .map(|text| text.parse().map_err(|_| bad("gw", text)));
        let mtu = match order.number("mtu", 0, 0..=65_535)? {
            0 => None,
            mtu => i32::try_from(mtu).ok(),
        };
        Ok(Self {
            device: order.text("dev").unwrap_or("eth0").to_owned(),
            address: address.transpose()?,
            gateway: gateway.transpose()?,
            mtu,
            wait: Duration::from_secs(order.number("wait", 60, 0..=3600)?),
        })
    }

    /// Brings up the loopback and the device.
    ///
    /// # Errors
    /// Names the step that failed.
    pub fn apply(&self) -> io::Result<()> {
        let named = |what: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("{} {what}: {error}", self.device))
        };
        // Fails only where somebody else has set it up already and we may not.
        let _ = interface::bring_up("lo");
        let Some((address, prefix)) = self.address else {
            return Ok(());
        };
        let limit = Instant::now() + self.wait;
        let shows = Path::new("/sys/class/net").join(&self.device);
        while !shows.exists() {
            if Instant::now() >= limit {
                return Err(named("wait", io::ErrorKind::NotFound.into()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(mtu) = self.mtu {
            interface::set_mtu(&self.device, mtu).map_err(|error| named("mtu", error))?;
        }
        interface::set_address(&self.device, address, prefix)
            .map_err(|error| named("address", error))?;
        interface::bring_up(&self.device).map_err(|error| named("up", error))?;
        if let Some(gateway) = self.gateway {
            interface::add_default_route(gateway).map_err(|error| named("route", error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::orders::Order;

    #[test]
    fn addresses_are_checked() {
        let parse = |text: &str| Options::from_order(&Order::new("net", text.split(' ')));
        let good = parse("ip=192.0.2.10/28 gw=192.0.2.1").expect("good");
        assert_eq!(good.address, Some(([192, 0, 2, 10].into(), 28)));
        assert_eq!(good.device, "eth0");
        for bad in [
            "ip=192.0.2.10/33",
            "ip=192.0.2",
            "gw=x",
            "mtu=70000",
            "adr=1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
