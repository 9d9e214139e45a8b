//! Whatever guest, backend and host do, in whatever order: each slot is answered exactly once,
//! packets stay whole and in order, and nothing leaks.

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::guest::Wishes;
use super::machine::Machine;
use crate::points::net::model::{Backend, hostile_backend, hostile_guest};

/// One thing that happens; numbers are reduced to what is possible.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Send {
        parts: u8,
        size: u16,
        gso: u8,
        is_blank: bool,
        spoil: bool,
    },
    Join,
    Post {
        count: u8,
        spoil: bool,
    },
    BackendTakes,
    BackendAnswers {
        pick: u8,
        is_error: bool,
        linger: bool,
    },
    BackendLetsGo,
    Deliver {
        parts: u8,
        size: u16,
        gso: u8,
        linger: bool,
    },
    /// Delivers the first part of a packet, and then moves the machine.
    DeliverHalf(Host),
    GuestReaps,
    Retry,
    Restart(bool),
    /// A move that drains first.
    Move(Host),
    /// A move of what could not be drained.
    ForcedMove(Host),
    CancelledMove,
}

/// What a host's backend offers.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub sg: bool,
    pub gso: [bool; 2],
    pub multicast: bool,
    pub split: bool,
}

impl Host {
    pub fn backend(&self) -> Backend {
        Backend::new(&[
            ("feature-rx-copy", true),
            ("feature-sg", self.sg),
            ("feature-gso-tcpv4", self.gso[0]),
            ("feature-gso-tcpv6", self.gso[1]),
            ("feature-multicast-control", self.multicast),
            ("feature-split-event-channels", self.split),
        ])
    }

    /// Whether this one can stand in for `first`.
    pub fn is_enough(&self, first: &Self) -> bool {
        self.sg >= first.sg && self.gso[0] >= first.gso[0] && self.gso[1] >= first.gso[1]
    }

    /// One that can, whatever `first` offers.
    pub fn full(&self) -> Self {
        Self {
            sg: true,
            gso: [true; 2],
            ..self.clone()
        }
    }
}

fn host() -> impl Strategy<Value = Host> {
    let flags = (
        any::<bool>(),
        any::<[bool; 2]>(),
        any::<bool>(),
        any::<bool>(),
    );
    flags.prop_map(|(sg, gso, multicast, split)| Host {
        // Nobody offers to cut up what is in one part only.
        sg: sg || gso[0] || gso[1],
        gso,
        multicast,
        split,
    })
}

fn event() -> impl Strategy<Value = Event> {
    use prop::strategy::Just;
    let rarely = || prop::bool::weighted(0.1);
    let packet = || (1u8..6, any::<u16>(), 0u8..8, any::<bool>());
    prop::strategy::Union::new_weighted(vec![
        (
            8,
            (packet(), rarely())
                .prop_map(|((parts, size, gso, is_blank), spoil)| Event::Send {
                    parts,
                    size,
                    gso,
                    is_blank,
                    spoil,
                })
                .boxed(),
        ),
        (1, Just(Event::Join).boxed()),
        (
            4,
            (1u8..60, rarely())
                .prop_map(|(count, spoil)| Event::Post { count, spoil })
                .boxed(),
        ),
        (4, Just(Event::BackendTakes).boxed()),
        (
            8,
            (any::<u8>(), rarely(), rarely())
                .prop_map(|(pick, is_error, linger)| Event::BackendAnswers {
                    pick,
                    is_error,
                    linger,
                })
                .boxed(),
        ),
        (1, Just(Event::BackendLetsGo).boxed()),
        (
            8,
            packet()
                .prop_map(|(parts, size, gso, linger)| Event::Deliver {
                    parts,
                    size,
                    gso,
                    linger: linger && size.is_multiple_of(4),
                })
                .boxed(),
        ),
        (1, host().prop_map(Event::DeliverHalf).boxed()),
        (4, Just(Event::GuestReaps).boxed()),
        (2, Just(Event::Retry).boxed()),
        (1, any::<bool>().prop_map(Event::Restart).boxed()),
        (1, host().prop_map(Event::Move).boxed()),
        (1, host().prop_map(Event::ForcedMove).boxed()),
        (1, Just(Event::CancelledMove).boxed()),
    ])
}

proptest! {
    #[test]
    fn packets_stay_whole_and_in_order(
        first in host(),
        wants in any::<(bool, [bool; 2])>(),
        split in any::<bool>(),
        events in prop::collection::vec(event(), 1..150),
    ) {
        let wishes = Wishes { split, sg: wants.0 || wants.1[0] || wants.1[1], gso: wants.1 };
        let mut machine = Machine::new(&first, wishes);
        for event in &events {
            machine.happen(event);
        }
        machine.settle();
        machine.prove_alive();
        machine.check();
        prop_assert_eq!(machine.world.backend.announced > 0, machine.moves > 0);
        prop_assert!(machine.world.backend.announced <= 5 * machine.moves);
        machine.world.tear_down();
    }

    /// A guest that writes noise into rings, indexes and grants harms nobody.
    #[test]
    fn a_hostile_guest_harms_nobody(noise in prop::collection::vec(any::<u8>(), 9..2700)) {
        hostile_guest(&noise);
    }

    /// A backend that writes noise into its rings costs the guest its network and nothing else.
    #[test]
    fn a_hostile_backend_harms_nobody(noise in prop::collection::vec(any::<u8>(), 9..2700)) {
        hostile_backend(&noise);
    }
}
