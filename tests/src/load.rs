//! How busy a guest is while it is moved.

/// What the guest has to do all the while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// As much as it can: it keeps a processor of the host busy.
    Full,
    /// Requests and messages at all times, but the processor is free for others most of the time.  What is
    /// carried wrongly shows as well, and other tests run beside.
    Steady,
}

impl Load {
    /// How the disk is used.
    pub(crate) const fn disk(self) -> &'static str {
        match self {
            Self::Full => "depth=8",
            Self::Steady => "depth=8,max=32k,pause=100000",
        }
    }

    /// What goes over each TCP connection.
    pub(crate) const fn tcp(self) -> [&'static str; 2] {
        match self {
            Self::Full => ["interval=20", "message=8k"],
            Self::Steady => ["interval=100", "message=4k"],
        }
    }
}
