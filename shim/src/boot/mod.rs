//! From the PVH entry to a PV guest that is ready to run.
