//! Grant tables (`xen/include/public/grant_table.h`).
