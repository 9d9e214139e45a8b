//! What the operator asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Options of a job.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct JobOptions {
    /// Another name at the destination.
    pub destination_name: Option<String>,
    /// Target blackout.
    pub max_downtime_ms: u64,
    /// Limit on the blackout while the source decides: from the suspend request to the hand-over.  `None`: no
    /// limit, as with files.
    pub max_blackout_ms: Option<u64>,
    /// Limit on the time to copy while the guest runs; `None`: as long as it pays.
    pub timeout_ms: Option<u64>,
    /// What to do at that limit.
    pub on_timeout: OnTimeout,
    /// Limit on the rounds while the guest runs.
    pub max_rounds: u32,
    /// Bandwidth limit in bytes per second; `None`: no limit.
    pub bandwidth: Option<u64>,
    /// Number of connections that carry memory.
    pub parallel: u8,
    /// Compression of pages.
    pub compress: Compression,
    /// Leave the guest paused at the destination.
    pub leave_paused: bool,
    /// Disks that the operator vouches are the same storage at both ends.
    pub shared_storage: Vec<String>,
    /// Compare memory and state at both ends before the hand-over; `None`: as the daemon's configuration
    /// says, and without one not.
    pub verify: Option<bool>,
}

impl JobOptions {
    /// Default of [`JobOptions::max_blackout_ms`] for migrations: five minutes.
    pub const MAX_BLACKOUT_MS: u64 = 300_000;

    /// Whether memory and state are compared.
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.verify == Some(true)
    }
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            destination_name: None,
            max_downtime_ms: 300,
            max_blackout_ms: None,
            timeout_ms: None,
            on_timeout: OnTimeout::Abort,
            max_rounds: 30,
            bandwidth: None,
            parallel: 1,
            compress: Compression::None,
            leave_paused: false,
            shared_storage: Vec::new(),
            verify: None,
        }
    }
}

/// What to do when copying takes too long.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// Keep the guest where it is.
    #[default]
    Abort,
    /// Migrate it, whatever blackout that takes.
    StopAndCopy,
}

/// Compression of pages.  Pages of zeros are never sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// Zstandard, if that is expected to be faster than none.
    Auto,
    /// Zstandard at this level, from 1 to 19.
    Zstd(u8),
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = match text.split_once(':') {
            None if text == "none" => return Ok(Self::None),
            None if text == "auto" => return Ok(Self::Auto),
            None if text == "zstd" => Some(1),
            Some(("zstd", level)) => level.parse().ok().filter(|level| (1..=19).contains(level)),
            _ => None,
        };
        level.map(Self::Zstd).ok_or_else(|| {
            format!(
                "{text}: compression is auto, none, zstd or zstd:LEVEL with a level from 1 to 19"
            )
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl Serialize for Compression {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Compression;

    #[test]
    fn compression_is_written_as_it_is_read() {
        for text in ["none", "auto", "zstd:1", "zstd:19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        for text in ["", "zstd:", "zstd:0", "zstd:20", "zstd:x", "lz4", "none:1"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
