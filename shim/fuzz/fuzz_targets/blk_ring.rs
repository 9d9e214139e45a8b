//! A guest may write anything into its ring, its grants and its state nodes, at any moment of a
//! disk's life and between moves.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::points::disk::model::hostile_guest;

fuzz_target!(|noise: &[u8]| hostile_guest(noise));
