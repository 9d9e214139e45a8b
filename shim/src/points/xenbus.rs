//! The handshake of a split device, both ends.
