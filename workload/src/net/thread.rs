//! Threads that do little but wait: many of them must fit in a small guest.

use std::io;

const STACK: usize = 96 << 10;

/// A thread with a small stack.
pub(crate) fn spawn(act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK).spawn(act)?;
    Ok(())
}
