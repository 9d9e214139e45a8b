//! The real grant table: allocation, and safe revocation.
