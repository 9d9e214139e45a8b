//! ELF notes that a kernel carries for Xen (`xen/include/public/elfnote.h`).
