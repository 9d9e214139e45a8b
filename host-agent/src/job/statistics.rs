//! A job's figures under libvirt's names, so that scripts for libvirt can read them.

use serde::{Deserialize, Serialize};

/// A job's figures, live or final.  Times are in milliseconds, sizes in bytes, `*_bps` in bytes per second
/// and the dirty rate in pages per second.  Names and meaning are those of `virDomainGetJobStats`
/// (`include/libvirt/libvirt-domain.h`), where it has them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Statistics {
    /// Always `migration`, `save` or `restore`.
    pub operation: String,
    /// Time since the job began.
    pub time_elapsed: u64,
    /// Expected time until it ends.
    pub time_remaining: Option<u64>,
    /// The blackout; before it ends, the expected one.
    pub downtime: Option<u64>,
    /// Time from the beginning until memory is sent.
    pub setup_time: u64,
    /// Total to process, as known now.
    pub data_total: u64,
    /// Processed so far.
    pub data_processed: u64,
    /// Still to process.
    pub data_remaining: u64,
    /// The guest's memory.
    pub memory_total: u64,
    /// Bytes of memory sent; fewer may have gone over the network.
    pub memory_processed: u64,
    /// Bytes of memory left to send in this round.
    pub memory_remaining: u64,
    /// All-zero pages, which were not sent.
    pub memory_constant: u64,
    /// Pages that were sent.
    pub memory_normal: u64,
    /// Bytes in those pages.
    pub memory_normal_bytes: u64,
    /// Recent bytes per second.
    pub memory_bps: u64,
    /// Recent dirty rate, in pages per second.
    pub memory_dirty_rate: u64,
    /// Bytes of a page.
    pub memory_page_size: u64,
    /// The round, from 1.
    pub memory_iteration: u32,
    /// Bytes of compressed pages.
    pub compression_bytes: u64,
    /// Pages that were compressed.
    pub compression_pages: u64,
    /// Pages that compression did not make smaller.
    pub compression_overflow: u64,
    /// Whether it succeeded; `None` while it runs.
    pub success: Option<bool>,
    /// Why it failed.
    pub errmsg: Option<String>,
    /// Our addition: bytes given to the connections, including framing but not TLS.
    pub wire_bytes: u64,
}
