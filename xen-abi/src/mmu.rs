//! Page tables and their hypercalls, as a 64-bit PV guest sees them (`xen/include/public/xen.h`).
