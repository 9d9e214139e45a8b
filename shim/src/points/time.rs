//! The guest's clocks: its own system time, wall clock and timers.
