//! States of a split device (`xen/include/public/io/xenbus.h`).
