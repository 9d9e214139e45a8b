//! The agent's unsafe code, all of it: mappings, `ioctl`s and the memory that hypercalls read and write.
//!
//! What comes out of here is safe to use with any argument; what an argument *means* is
//! [`abi`](super::abi)'s and [`domain`](super::domain)'s concern.

mod event;
mod hypercall;
mod mapping;
mod pipe;

pub(crate) use event::EventChannels;
pub(crate) use hypercall::{Argument, Buffer, Privcmd};
pub(crate) use mapping::Mapping;
pub(crate) use pipe::set_pipe_size;
