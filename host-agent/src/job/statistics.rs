//! A job's figures, under the names that libvirt gives them, so that scripts made for it read ours.

use serde::{Deserialize, Serialize};

/// Figures of a job, live or at its end.  Times in milliseconds, sizes in bytes, `*_bps` and the
/// dirty rate in bytes and pages per second; names and meaning are those of `virDomainGetJobStats`
/// (`include/libvirt/libvirt-domain.h`) where it has them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct Statistics {
    /// Always `migration`, `save` or `restore`.
    pub operation: String,
    /// Since the job began.
    pub time_elapsed: u64,
    /// Until it is expected to end.
    pub time_remaining: Option<u64>,
    /// How long no vCPU ran; before that, how long it is expected.
    pub downtime: Option<u64>,
    /// From the beginning until memory is sent.
    pub setup_time: u64,
    /// All that will have to be processed, as known now.
    pub data_total: u64,
    /// Processed so far.
    pub data_processed: u64,
    /// Still to do.
    pub data_remaining: u64,
    /// The guest's memory.
    pub memory_total: u64,
    /// Bytes of memory sent; on the wire they may be fewer.
    pub memory_processed: u64,
    /// Bytes of memory that are still to be sent in this round.
    pub memory_remaining: u64,
    /// Pages that were all zero and were not sent.
    pub memory_constant: u64,
    /// Pages that were sent.
    pub memory_normal: u64,
    /// Bytes in these.
    pub memory_normal_bytes: u64,
    /// Bytes per second, lately.
    pub memory_bps: u64,
    /// Pages that the guest writes per second, lately.
    pub memory_dirty_rate: u64,
    /// Bytes of a page.
    pub memory_page_size: u64,
    /// The round, from 1.
    pub memory_iteration: u32,
    /// Bytes of compressed pages.
    pub compression_bytes: u64,
    /// Pages that were compressed.
    pub compression_pages: u64,
    /// Pages that did not get smaller.
    pub compression_overflow: u64,
    /// How it ended; `None` while it has not.
    pub success: Option<bool>,
    /// Why it failed.
    pub errmsg: Option<String>,
    /// Ours: bytes given to the connections, framing included, what TLS adds not.
    pub wire_bytes: u64,
}
