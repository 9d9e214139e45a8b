//! The guest's console ring, relayed both ways.
