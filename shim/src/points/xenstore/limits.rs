//! The quotas that an unprivileged domain meets in the real daemon (Xen 4.17's defaults).
//!
//! The boundaries are the daemon's, oddities included: "128 watches" refuses the 130th, "10
//! transactions" the 12th, while the node count is exact.

/// What one guest may use of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes that the guest owns; one more is `ENOSPC`.
    pub nodes: usize,
    /// Bytes of one node with header, permissions, value and child names; reaching it is `ENOSPC`.
    pub node_bytes: usize,
    /// Watches; a request made when there are already more than this many is `E2BIG`.
    pub watches: usize,
    /// Open transactions; one more is refused with `ENOSPC` when more than this many are open.
    pub transactions: usize,
    /// Different nodes that one transaction may touch; one more is `ENOSPC` and dooms it.
    pub transaction_nodes: usize,
    /// Entries in a permission list; more is `ENOSPC`.
    pub perms: usize,
    /// Bytes of a path below a domain's directory, or of any other path; more is `EINVAL`.
    pub path_bytes: usize,
    /// Answers that wait for the guest to read them; at this many nothing is taken from its ring.
    pub outstanding: usize,
    /// Bytes of heap that the guest's nodes, transactions, watches and waiting messages may take;
    /// beyond it requests are `ENOMEM`, events are dropped and nothing more is taken from the ring.
    /// The daemon counts less for the same; what it allows by its other quotas fits all the same.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 1000,
            node_bytes: 2048,
            watches: 128,
            transactions: 10,
            transaction_nodes: 1024,
            perms: 5,
            path_bytes: xen_abi::xs_wire::REL_PATH_MAX,
            outstanding: 20,
            memory: (2 << 20) + (512 << 10),
        }
    }
}
