//! The PV hypercalls, one file for each family.
