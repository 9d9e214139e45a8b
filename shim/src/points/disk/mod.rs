//! Block devices: a backend towards the guest, a frontend towards the host.
