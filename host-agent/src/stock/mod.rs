//! Migrations with an agent at one end only: the other end is one of Xen's own tools, or a file.
//!
//! | function | other end |
//! |---|---|
//! | [`save`], [`restore`] | a file, as `xl save` writes and `xl restore` reads it |
//! | [`send`] | a command that behaves like `xl migrate-receive`, on another host |
//! | [`receive`] | `xl migrate -s`, or anything that says the same words |

mod feed;
mod file;
mod receive;
mod send;

use std::thread;
use std::time::Duration;

use crate::job::{Error, Source};

pub use file::{restore, save};
pub use receive::receive;
pub use send::send;

/// How often a resume is tried, and the pause between two tries.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Resumes a guest after `error`; returns the message about both.
fn back(source: &mut dyn Source, error: Error) -> Error {
    // Without a journal, nobody would try again later.
    for left in (0..ATTEMPTS).rev() {
        match source.resume_here() {
            Ok(()) => break,
            Err(other) if left == 0 => {
                return Error::Xen(format!("{error}; and the guest does not resume: {other}"));
            }
            Err(other) => log::warn!("the guest has not resumed yet: {other}"),
        }
        thread::sleep(PAUSE);
    }
    error
}
