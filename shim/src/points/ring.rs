//! Shared request rings, both sides, over frames that somebody else may scribble on.
