//! The steps of the random walk, and how often each is taken with what.

use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::select;
use xen_abi::mmu::{Level, Pte};
use xen_abi::{GuestVa, Mfn};

use super::super::machine::{
    FIRST_GUEST, HOLE, KERNEL_RO, KERNEL_RW, OUTSIDE, READ_ONLY, SHARED, SHIM, USER_RW,
};
use super::VCPUS;

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The guest writes a frame that it may map writable.
    Native(Mfn, usize, Pte),
    Pin(Level, Mfn),
    Unpin(Mfn),
    Update(Mfn, usize, Pte, bool),
    Va(usize, GuestVa, Pte),
    /// An emulated store; with a value, an exchange that expects the entry to differ by it.
    Store(Mfn, usize, Pte, Option<u64>),
    Base(usize, Mfn),
    UserBase(usize, Mfn),
    Descriptors(Mfn),
    DropDescriptors(usize),
    Descriptor(Mfn, usize, u64),
    Device(Mfn),
    DropDevice(usize),
    Release(Mfn),
    Populate(Mfn),
    Clear(Mfn),
    Copy(Mfn, Mfn),
    /// The page walker notes an access.
    Walker(Mfn, usize),
}

impl Op {
    /// Whether all that is owed has to be settled after it: no list holds it.
    pub(super) fn ends_lists(&self) -> bool {
        matches!(self, Self::Release(_) | Self::Base(..) | Self::UserBase(..))
    }

    /// Its kind in words, to count by.
    pub(super) fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_owned()
    }
}

/// Frames by the use that the walk prefers for them, so that it gets anywhere: 0 is data.
fn role(level: u64) -> impl Strategy<Value = Mfn> {
    let usual = match level {
        4 => 4..7,
        3 => 7..9,
        2 => 9..11,
        1 => 11..15,
        _ => 15..20_u64,
    };
    prop_oneof![
        24 => usual.prop_map(Mfn),
        2 => (FIRST_GUEST..20).prop_map(Mfn),
        1 => select(vec![SHARED, READ_ONLY, SHIM, HOLE, OUTSIDE, Mfn(0)]),
    ]
}

fn any_frame() -> impl Strategy<Value = Mfn> {
    (0_u64..5).prop_flat_map(role)
}

fn index() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0_usize..2, 1 => select(vec![255, 256, 271, 272, 511])]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => select(vec![USER_RW, KERNEL_RW]),
        6 => Just(KERNEL_RO),
        6 => Just(0),
        1 => any::<u64>().prop_map(|bits| bits & !Pte::FRAME),
    ]
}

fn entry(level: u64) -> impl Strategy<Value = Pte> {
    // Of the entries that map pages, some map tables.
    let target = prop_oneof![3 => role(level - 1).boxed(), 1 => any_frame().boxed()];
    (target, flags()).prop_map(|(frame, flags)| Pte::new(frame, flags))
}

fn slot() -> impl Strategy<Value = (Mfn, usize, Pte)> {
    let level = select(vec![1_u64, 1, 1, 2, 2, 3, 4]);
    level.prop_flat_map(|level| (role(level), index(), entry(level)))
}

fn store() -> impl Strategy<Value = Op> {
    // Overwrite, exchange what is there, exchange what was there before the walker came.
    let expected = select(vec![None, Some(0), Some(Pte::DIRTY)]);
    (role(1), index(), entry(1), expected)
        .prop_map(|(table, index, pte, expected)| Op::Store(table, index, pte, expected))
}

/// Any step.
pub(super) fn op() -> impl Strategy<Value = Op> {
    let levels = select(vec![Level::L1, Level::L2, Level::L3, Level::L4]);
    let pin = levels.prop_flat_map(|level| (Just(level), role(level as u64)));
    let bases = select(vec![0, 1 << 21, (!0_u64) << 21]);
    let va = (0..VCPUS, index(), bases, entry(1))
        .prop_map(|(vcpu, l1, base, pte)| Op::Va(vcpu, GuestVa(base + l1 as u64 * 4096), pte));
    let raw = select(vec![
        0,
        0x00af_9b00_0000_ffff,
        0x8900_0000_0067,
        0x2000_0000_0000,
    ]);
    prop_oneof![
        12 => slot().prop_map(|(table, index, pte)| Op::Native(table, index, pte)),
        4 => pin.prop_map(|(level, table)| Op::Pin(level, table)),
        3 => any_frame().prop_map(Op::Unpin),
        8 => (slot(), any::<bool>()).prop_map(|((table, index, pte), preserve)| {
            Op::Update(table, index, pte, preserve)
        }),
        6 => va,
        8 => store(),
        2 => (0..VCPUS, role(4)).prop_map(|(vcpu, root)| Op::Base(vcpu, root)),
        2 => (0..VCPUS, role(4)).prop_map(|(vcpu, root)| Op::UserBase(vcpu, root)),
        1 => any_frame().prop_map(Op::Descriptors),
        3 => (0_usize..2).prop_map(Op::DropDescriptors),
        1 => (any_frame(), index(), raw)
            .prop_map(|(frame, index, raw)| Op::Descriptor(frame, index, raw)),
        1 => any_frame().prop_map(Op::Device),
        3 => (0_usize..2).prop_map(Op::DropDevice),
        2 => any_frame().prop_map(Op::Release),
        6 => any_frame().prop_map(Op::Populate),
        1 => any_frame().prop_map(Op::Clear),
        1 => (any_frame(), any_frame()).prop_map(|(to, from)| Op::Copy(to, from)),
        2 => (role(1), index()).prop_map(|(table, index)| Op::Walker(table, index)),
    ]
}
