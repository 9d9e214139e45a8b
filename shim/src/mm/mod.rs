//! The guest's memory: who owns a frame, what it is used as, and every change of a page table.
