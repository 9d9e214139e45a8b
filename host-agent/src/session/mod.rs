//! The migration protocol as pure state machines: no clock, no disk, no socket, no Xen.
//!
//! It is the protocol of two methods that was proposed for libvirt in 2007: `destination(step, cookie)`
//! and `source(step, cookie)` are called in turn, each answers *complete*, *continue* or *failed* with a
//! cookie for the other, until both are complete; a failure at one end is always told to the other.
//!
//! | step | destination | source |
//! |---|---|---|
//! | 0 meet | capabilities (has no effect, belongs to no session) | capabilities; what the guest needs |
//! | 1 reserve | locks, starts the toolstack: *continue* | copies, suspends, copies the rest: *continue* |
//! | 2 receive | has the whole domain, paused: *continue* | hands over: *continue*, with the token |
//! | 3 take over | the guest runs: *complete* | destroys its copy: *complete* |
//! | 4 retire | forgets the session: *complete* | |
//!
//! A machine is fed one [event](SourceEvent) and gives one [effect](SourceEffect); whoever runs it
//! carries the effect out and feeds the result back.  So a crash can fall before or after any effect
//! and nowhere else, and the simulation beside this module plays through all of them.
//!
//! What makes it safe is who decides, and when it is written down:
//!
//! * Up to [`SourceRecord::HandedOver`] the **source** decides.  The destination cannot run the guest: it
//!   knows only the [`Seal`] of the token that it needs for that, and the source keeps the [`Token`]
//!   to itself.
//! * From there on the **destination** decides: it takes over ([`DestinationRecord::Taken`]) or has
//!   discarded its copy for ever ([`DestinationRecord::Discarded`]), and the source asks until it knows
//!   which of the two.
//! * Every decision is on the disk before anything follows from it.

mod destination;
mod message;
mod record;
mod source;
mod standing;
mod token;

pub use destination::{Choice, DestinationEffect, DestinationEvent, DestinationSession};
pub use message::{Answer, Order, Request, Sent, Status, Trouble};
pub use record::{DestinationRecord, SourceRecord};
pub use source::{Operator, SourceEffect, SourceEvent, SourceSession};
pub use standing::{IN_DOUBT, NOT_YET, Other, Standing};
pub use token::{Seal, SessionId, Token};
