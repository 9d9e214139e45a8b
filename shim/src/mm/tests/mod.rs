//! The rules of guest memory, one test each, and their interplay as a random walk.

mod descriptors;
mod machine;
mod mappings;
mod races;
mod random;
mod scan;
mod stale;
mod stores;
mod tables;
