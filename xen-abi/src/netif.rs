//! Network device rings (`xen/include/public/io/netif.h`).
