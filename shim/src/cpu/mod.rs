//! What a vCPU is, and how the guest's exceptions, callbacks and system calls reach it.
