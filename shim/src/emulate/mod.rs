//! Instructions that the guest executes and the CPU refuses in ring 3.
