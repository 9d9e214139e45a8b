//! The xenstore wire protocol and its ring (`xen/include/public/io/xs_wire.h`).
