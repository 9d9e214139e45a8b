//! What the operator asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a job is to be done.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct JobOptions {
    /// Name at the destination, if another one.
    pub destination_name: Option<String>,
    /// Longest blackout that is aimed at.
    pub max_downtime_ms: u64,
    /// Longest time that the guest may stand still while the source decides: from when it is asked to suspend
    /// itself to the hand-over.  `None`: as long as it takes, as with files.
    pub max_blackout_ms: Option<u64>,
    /// Longest time that memory is copied with the guest running; `None`: as long as it pays.
    pub timeout_ms: Option<u64>,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Most rounds over the memory with the guest running.
    pub max_rounds: u32,
    /// Most bytes per second on the wire; `None`: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// Connections that carry memory.
    pub parallel: u8,
    /// What is done to pages on the wire.
    pub compress: Compression,
    /// The guest stays paused at the destination.
    pub leave_paused: bool,
    /// Disks that are the same storage at both ends, by the operator's word.
    pub shared_storage: Vec<String>,
    /// Memory and state are compared at both ends before the hand-over; `None`: as the daemon's configuration
    /// says, and outside of it not.
    pub verify: Option<bool>,
}

impl JobOptions {
    /// [`JobOptions::max_blackout_ms`] of a migration for which nothing else is said: five minutes.
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

/// What happens when copying with the guest running takes too long.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// The guest stays where it is.
    #[default]
    Abort,
    /// It is moved with the blackout that it takes.
    StopAndCopy,
}

/// What is done to pages on the wire.  Pages of zeros are never sent, whatever this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    #[default]
    None,
    /// Zstandard, if that is expected to be faster than nothing.
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
