//! What a PV guest is started with (`struct start_info`, `xen/include/public/xen.h`).
