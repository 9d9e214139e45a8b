//! The guest's event channels: two-level ports that the shim issues.
