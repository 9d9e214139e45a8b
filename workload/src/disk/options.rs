//! What disk traffic is asked for, and its limits.

use std::path::PathBuf;
use std::time::Duration;

use super::pattern::BLOCK;
use crate::orders::{Order, OrderError};

/// The names of all options, for refusing others.
const KNOWN: [&str; 11] = [
    "dev", "depth", "min", "max", "area", "flush", "discard", "reads", "pause", "direct", "wait",
];

/// The settings of one run of disk traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The block device (or file) to overwrite.
    pub device: PathBuf,
    /// Requests in flight.
    pub depth: usize,
    /// Smallest request in blocks.
    pub min_blocks: u64,
    /// Largest request in blocks.
    pub max_blocks: u64,
    /// How much of the device is used, in bytes; 0 for all of it.
    pub area: u64,
    /// One flush in so many writes of a worker; 0 for none.
    pub flush_every: u64,
    /// One discard in so many requests of a worker; 0 for none.
    pub discard_every: u64,
    /// Percentage of requests that read back and check.
    pub reads: u64,
    /// Pause of a worker after each request, in microseconds.
    pub pause_us: u64,
    /// Bypass the page cache.
    pub direct: bool,
    /// How long to wait for the device to appear.
    pub wait: Duration,
}

impl Options {
    /// Takes the options from an order: `dev= depth= min= max= area= flush= discard= reads= pause=
    /// direct= wait=`.
    ///
    /// # Errors
    /// Unknown, missing or senseless options.
    pub fn from_order(order: &Order) -> Result<Self, OrderError> {
        order.allow(&KNOWN)?;
        let block = BLOCK as u64;
        let largest = 1 << 20;
        let max = order.number("max", 128 << 10, block..=largest)?;
        let min = order.number("min", block, block..=max)?;
        if !max.is_multiple_of(block) || !min.is_multiple_of(block) {
            return Err(OrderError(
                "disk: min= and max= must be multiples of 4k".into(),
            ));
        }
        let depth = order.number("depth", 8, 1..=128)?;
        Ok(Self {
            device: PathBuf::from(order.required("dev")?),
            depth: usize::try_from(depth).unwrap_or(1),
            min_blocks: min / block,
            max_blocks: max / block,
            area: order.number("area", 0, 0..=1 << 50)?,
            flush_every: order.number("flush", 50, 0..=1 << 32)?,
            discard_every: order.number("discard", 0, 0..=1 << 32)?,
            reads: order.number("reads", 40, 0..=100)?,
            pause_us: order.number("pause", 0, 0..=60_000_000)?,
            direct: order.flag("direct", true)?,
            wait: Duration::from_secs(order.number("wait", 30, 0..=3600)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::orders::Order;

    #[test]
    fn senseless_options_are_refused() {
        let parse = |text: &str| Options::from_order(&Order::new("disk", text.split(' ')));
        assert_eq!(
            parse("dev=/dev/xvda depth=32 max=1M").map(|it| it.max_blocks),
            Ok(256)
        );
        for bad in [
            "depth=32",
            "dev=x depth=0",
            "dev=x max=2M",
            "dev=x min=5000",
            "dev=x min=8k max=4k",
            "dev=x speed=1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
