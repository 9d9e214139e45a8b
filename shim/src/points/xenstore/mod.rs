//! The xenstore that the guest sees: a small virtual store with the real daemon's rules.
