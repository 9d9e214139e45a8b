//! All unsafe code of the agent: mappings, `ioctl`s and the memory that hypercalls read and write.
//!
//! Everything that this module exports is safe to call with any argument.  What an argument *means* is the
//! concern of [`abi`](super::abi) and [`domain`](super::domain).

mod event;
mod hypercall;
mod mapping;
mod pipe;

pub(crate) use event::EventChannels;
pub(crate) use hypercall::{Argument, Buffer, Privcmd};
pub(crate) use mapping::Mapping;
pub(crate) use pipe::set_pipe_size;
