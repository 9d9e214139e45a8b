//! A guest, or a host's backend, may write anything into its rings, grants and state nodes, at any
//! moment of a network interface's life and between moves.  The first byte says which of the two.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::points::net::model::{hostile_backend, hostile_guest};

fuzz_target!(|noise: &[u8]| {
    if let Some((who, noise)) = noise.split_first() {
        match who & 1 {
            0 => hostile_guest(noise),
            _ => hostile_backend(noise),
        }
    }
});
