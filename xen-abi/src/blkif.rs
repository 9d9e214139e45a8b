//! Block device rings (`xen/include/public/io/blkif.h`).
