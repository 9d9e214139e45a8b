//! How often a guest was moved.

/// Counts the moves of this guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moves {
    /// Moves that are over; it starts with none.
    pub done: u64,
    /// Suspends that the host took back.
    pub cancelled: u64,
    /// Suspends that the shim refused.
    pub refused: u64,
}
