//! Moves with an agent at one end only: the other is Xen's own tool, or a file.
//!
//! | function | other end |
//! |---|---|
//! | [`save`], [`restore`] | a file, such as `xl save` writes and `xl restore` reads |
//! | [`send`] | a command that behaves like `xl migrate-receive`, on another host |
//! | [`receive`] | `xl migrate -s`, or whatever says the same words |

mod feed;
mod file;
mod receive;
mod send;

use crate::job::{Error, Source};

pub use file::{restore, save};
pub use receive::receive;
pub use send::send;

/// Lets a guest go on after `error`; what there is to say of both.
fn back(source: &mut dyn Source, error: Error) -> Error {
    match source.resume_here() {
        Ok(()) => error,
        Err(other) => Error::Xen(format!("{error}; and the guest does not go on: {other}")),
    }
}
