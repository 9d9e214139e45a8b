//! The guest's grant table, and the hypercalls about it.
