//! The part of the shim that can run, and be tested, on any host: no instruction here is privileged.

#![cfg_attr(not(any(test, feature = "testing")), no_std)]

extern crate alloc;
