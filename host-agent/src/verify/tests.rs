//! Copies that are the guest and copies that are not, with guests in memory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use unmoved_stream::libxc::{
    DomainHeader, DomainType, HvmParam, ImageHeader, RecordType, TscInfo, Writer,
};

use super::{Told, memory, note, state};
use crate::job::{Chunk, Control, Digests, Error, JobOptions, Result, StateDigests};
use crate::save::Memory;
use crate::save::guest::fake::FakeGuest;

type Frames = BTreeMap<u64, u8>;

fn control() -> Control {
    Control::new(JobOptions::default())
}

/// A guest that stands still and whose last round has begun.
fn still(frames: &Frames) -> FakeGuest {
    let mut guest = FakeGuest {
        frames: frames.clone(),
        ..FakeGuest::default()
    };
    guest.record_writes(1 << 21).unwrap();
    guest
}

fn told(chunks: &[Chunk]) -> Told {
    let mut told = Told::of(1 << 30);
    for piece in chunks.chunks(3) {
        told.take(Digests::Memory(piece)).unwrap();
    }
    told.take(Digests::State(StateDigests::default())).unwrap();
    told
}

/// Whether the guest with these frames is the one that was told of.
fn compared(chunks: &[Chunk], copy: &Frames) -> Result<()> {
    let copy: Box<dyn Memory> = Box::new(FakeGuest {
        frames: copy.clone(),
        ..FakeGuest::default()
    });
    told(chunks).compare(|| Ok(copy), &StateDigests::default(), &|| Ok(()))
}

fn why(result: Result<()>) -> String {
    result.unwrap_err().to_string()
}

/// Frames of three MiB and a bit, and far ones; a third of them zero.
fn frames() -> impl Strategy<Value = Frames> {
    let near = prop::collection::btree_map(0_u64..900, 0_u8..3, 1..700);
    let far = prop::collection::btree_map((1_u64 << 20)..(1 << 20) + 300, 0_u8..3, 0..20);
    (near, far).prop_map(|(mut near, far)| {
        near.extend(far);
        near
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_frame_that_differs_or_is_missing_is_found(
        frames in frames(),
        which in any::<prop::sample::Index>(),
        value in prop::option::of(3_u8..9),
    ) {
        let chunks = memory(&mut still(&frames), &control()).unwrap();
        prop_assert_eq!(chunks.iter().flat_map(Chunk::frames).count(), frames.len());
        compared(&chunks, &frames).unwrap();
        let mut copy = frames.clone();
        let frame = *which.get(&frames.keys().copied().collect::<Vec<_>>());
        // Also a zero that is not there: it is memory to the guest.
        match value {
            Some(value) => copy.insert(frame, value),
            None => copy.remove(&frame),
        };
        let why = why(compared(&chunks, &copy));
        let first = if value.is_none() { frame } else { frame / 256 * 256 };
        prop_assert!(why.contains(&format!("1 of {} MiB", chunks.len())), "{}", why);
        prop_assert!(why.ends_with(&format!("at frame {first:#x}")), "{}", why);
        prop_assert_eq!(why.contains("missing"), value.is_none());
    }

    #[test]
    fn what_is_written_meanwhile_is_no_difference_and_all_else_is_one(
        frames in frames(),
        writes in prop::collection::vec(
            prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(0_u8..9)), 0..4),
            0..30,
        ),
        which in any::<prop::sample::Index>(),
    ) {
        let all: Vec<u64> = frames.keys().copied().collect();
        let mut guest = still(&frames);
        // A frame that goes does not come back: nobody gives memory to a guest that stands still.
        let mut gone = BTreeSet::new();
        for list in &writes {
            let mut now = Vec::new();
            for (frame, value) in list {
                let frame = *frame.get(&all);
                if !gone.contains(&frame) {
                    now.push((frame, *value));
                }
                if value.is_none() {
                    gone.insert(frame);
                }
            }
            guest.writes.push_back(now);
        }
        let chunks = memory(&mut guest, &control()).unwrap();
        compared(&chunks, &frames).unwrap();
        let touched: BTreeSet<u64> = writes.iter().flatten().map(|(frame, _)| *frame.get(&all)).collect();
        let rest: Vec<u64> = all.iter().copied().filter(|frame| !touched.contains(frame)).collect();
        prop_assume!(!rest.is_empty());
        let mut copy = frames;
        copy.insert(*which.get(&rest), 200);
        prop_assert!(compared(&chunks, &copy).is_err());
    }
}

#[test]
fn frames_that_others_write_are_not_counted() {
    let mut frames: Frames = (0..600).map(|frame| (frame, 1)).collect();
    // Shared info and the grant table of the shim, rings, the tables of ACPI.
    frames.extend([0xf_c000, 0xf_e000, 0xf_e100, 0xf_effc].map(|frame| (frame, 2)));
    let mut guest = still(&frames);
    // Of these, one is a ring, which a backend writes through its mapping: in no record.
    guest.granted.extend([300, 1 << 40]);
    guest.writes.push_back(vec![(300, Some(9))]);
    let chunks = memory(&mut guest, &control()).unwrap();
    let counted: Vec<u64> = chunks.iter().flat_map(Chunk::frames).collect();
    assert!(
        counted
            .iter()
            .copied()
            .eq((0..600).filter(|frame| *frame != 300))
    );
    compared(&chunks, &frames).unwrap();
}

#[test]
fn what_no_round_has_sent_is_found() {
    let frames: Frames = (0..300).map(|frame| (frame, 0)).collect();
    let mut guest = still(&frames);
    // One that came without a trace, as before Xen 4.19.5, and two that went.
    guest.frames.insert(400, 0);
    guest.frames.remove(&10);
    guest.frames.remove(&11);
    let chunks = memory(&mut guest, &control()).unwrap();
    let why = why(compared(&chunks, &frames));
    assert!(
        why.ends_with(
            "1 of 2 MiB of memory differ, 1 frames of which are missing, the first at frame 0x190"
        ),
        "{why}"
    );
}

#[test]
fn an_abort_ends_it_at_either_end() {
    let frames: Frames = (0..600).map(|frame| (frame, 1)).collect();
    let job = control();
    let chunks = memory(&mut still(&frames), &job).unwrap();
    job.abort();
    let ended = memory(&mut still(&frames), &job);
    assert!(matches!(ended, Err(Error::Aborted)), "{ended:?}");
    let copy: Box<dyn Memory> = Box::new(still(&frames));
    let ended = told(&chunks).compare(|| Ok(copy), &StateDigests::default(), &|| job.check());
    assert!(matches!(ended, Err(Error::Aborted)), "{ended:?}");
}

fn records(elapsed_ns: u64, context: &[u8], value: u64) -> Vec<u8> {
    let image = ImageHeader { version: 3 };
    let domain = DomainHeader {
        kind: DomainType::Hvm,
        xen_major: 4,
        xen_minor: 20,
    };
    let mut writer = Writer::new(Vec::new(), image, domain).unwrap();
    writer.static_data_end().unwrap();
    writer.get_mut().clear();
    let tsc = TscInfo {
        mode: 1,
        khz: 2_600_000,
        elapsed_ns,
        incarnation: 3,
    };
    writer.tsc_info(tsc).unwrap();
    writer.hvm_context(context).unwrap();
    writer.hvm_params(&[HvmParam { index: 1, value }]).unwrap();
    writer.end().unwrap();
    std::mem::take(writer.get_mut())
}

#[test]
fn a_state_that_is_not_the_last_is_found() {
    let last = state(&records(7, b"abc", 5)).unwrap();
    let mut told = Told::of(0);
    told.take(Digests::State(last)).unwrap();
    let nothing = || -> Result<Box<dyn Memory>> { Ok(Box::new(FakeGuest::default())) };
    let compared = |arrived: Vec<u8>| {
        let arrived = state(&arrived).unwrap();
        told.compare(nothing, &arrived, &|| Ok(()))
    };
    compared(records(7, b"abc", 5)).unwrap();
    for (record, other) in [
        ("X86_TSC_INFO", records(8, b"abc", 5)),
        ("HVM_CONTEXT", records(7, b"abd", 5)),
        ("HVM_PARAMS", records(7, b"abc", 6)),
    ] {
        let why = why(compared(other));
        assert!(why.contains(record), "{why}");
    }
    let mut noted = StateDigests::default();
    note(&mut noted, RecordType::HVM_CONTEXT, b"abd");
    note(&mut noted, RecordType::HVM_CONTEXT, b"abc");
    note(&mut noted, RecordType::END, b"");
    assert_eq!(noted.context, last.context);
}

#[test]
fn only_digests_that_can_be_are_taken() {
    let of = |first| Chunk {
        first,
        counted: [1, 0, 0, 0],
        ..Chunk::default()
    };
    let taken = |chunks: &[Chunk]| Told::of(64 << 20).take(Digests::Memory(chunks));
    taken(&[of(0), of(256), of(1024)]).unwrap();
    for wrong in [
        vec![of(1)],
        vec![of(256), of(256)],
        vec![of(256), of(0)],
        vec![of(1 << 52)],
        vec![Chunk::default()],
    ] {
        assert!(why(taken(&wrong)).contains("invalid frames"), "{wrong:?}");
    }
    // However it is told: a guest of 64 MiB does not have memory at 193 places.
    let mut told = Told::of(64 << 20);
    for index in 0..192 {
        told.take(Digests::Memory(&[of(index * 256)])).unwrap();
    }
    let much = told.take(Digests::Memory(&[of(192 * 256)]));
    assert!(why(much).contains("more memory than it may have"));
    let back = told.take(Digests::Memory(&[of(0)]));
    assert!(back.is_err());
    told.take(Digests::State(StateDigests::default())).unwrap();
    for late in [
        Digests::Memory(&[]),
        Digests::State(StateDigests::default()),
    ] {
        assert!(why(told.take(late)).contains("after their end"));
    }
}

#[test]
fn digests_without_an_end_are_not_taken_for_all() {
    let nothing = || -> Result<Box<dyn Memory>> { Ok(Box::new(FakeGuest::default())) };
    let state = StateDigests::default();
    let mut told = Told::of(1 << 20);
    told.compare(nothing, &state, &|| Ok(())).unwrap();
    let chunk = Chunk {
        counted: [1, 0, 0, 0],
        ..Chunk::default()
    };
    told.take(Digests::Memory(&[chunk])).unwrap();
    assert!(why(told.compare(nothing, &state, &|| Ok(()))).contains("are incomplete"));
}
