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

use std::thread;
use std::time::Duration;

use crate::job::{Error, Source};

pub use file::{restore, save};
pub use receive::receive;
pub use send::send;

/// So often a guest is tried to be let go on, and the time between.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Lets a guest go on after `error`; what there is to say of both.
fn back(source: &mut dyn Source, error: Error) -> Error {
    // There is no journal by which anybody would try again later.
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
