//! Where a host's processor spends its time: its registers are looked at many times a second, from outside.
//!
//! Nothing runs in the host for that, so all of it is seen alike: Xen, dom0, shims and guests.  A look
//! stops the machine for a moment, in which its clocks go on; so compare shares, not times.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::qmp::Qmp;

/// What the processor was doing at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since sampling began.
    pub at: Duration,
    /// The instruction's address.
    pub rip: u64,
    /// Privilege level.
    pub ring: u8,
    /// Whether it waits for an interrupt.
    pub is_halted: bool,
    /// Where the task state segment is: each hypervisor has its own, and changes it for no guest of ring 3.
    pub tss: u64,
}

impl Sample {
    /// Reads QEMU's `info registers`.
    fn read(at: Duration, text: &str) -> Option<Self> {
        let after = |name: &str| {
            let (_, rest) = text.split_once(name)?;
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_hexdigit());
            u64::from_str_radix(&rest[..end.unwrap_or(rest.len())], 16).ok()
        };
        // Its selector, its base.
        let (_, tss) = text.split_once("TR =")?;
        let tss = tss.split_ascii_whitespace().nth(1)?;
        Some(Self {
            at,
            // Not every moment of a boot is in 64-bit mode.
            rip: after("RIP=").or_else(|| after("EIP="))?,
            ring: u8::try_from(after("CPL=")?).ok()?,
            is_halted: after("HLT=")? != 0,
            tss: u64::from_str_radix(tss, 16).ok()?,
        })
    }
}

/// Looks at a machine in the background until it is told to stop.
#[derive(Debug)]
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

impl Sampler {
    /// Begin; `socket` is a control connection of the machine's that nobody has greeted yet.
    pub(crate) fn start(socket: UnixStream, every: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut qmp = Qmp::connect(socket)?;
            let (begun, mut samples) = (Instant::now(), Vec::new());
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let command = json!({"command-line": "info registers"});
                let answer = qmp.command("human-monitor-command", &command)?;
                let sample = Sample::read(begun.elapsed(), answer.as_str().unwrap_or_default());
                samples.push(sample.context("QEMU's registers are not as expected")?);
            }
            Ok(samples)
        });
        Self { stop, thread }
    }

    /// Stop, and give what was seen.
    ///
    /// # Errors
    /// If the machine has gone.
    pub fn finish(self) -> Result<Vec<Sample>> {
        // It has ended by itself if it failed, and says why below.
        let _ = self.stop.send(());
        self.thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the sampler panicked")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Sample;

    #[test]
    fn registers_are_read() {
        let text = "CPU#0\r\nRAX=0000000000000000 RBX=0000000000000001\r\n\
            RIP=ffff82d040203a1c RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1\r\n\
            LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\r\n\
            TR =e040 ffff82d04044f000 00000067 00008b00 DPL=0 TSS64-busy\r\n";
        let sample = Sample::read(Duration::ZERO, text).unwrap();
        assert_eq!(sample.rip, 0xffff_82d0_4020_3a1c);
        assert_eq!((sample.ring, sample.is_halted), (3, true));
        assert_eq!(sample.tss, 0xffff_82d0_4044_f000);
        assert_eq!(Sample::read(Duration::ZERO, "nothing"), None);
    }
}
