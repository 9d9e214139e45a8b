//! What a PVH guest is started with (`xen/include/public/arch-x86/hvm/start_info.h`).
