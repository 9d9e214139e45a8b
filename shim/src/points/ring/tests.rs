//! Both ends of a ring against each other, and against an end that lies.

use std::collections::VecDeque;

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use xen_abi::Mfn;

use super::{BackRing, FrontRing, REQ_PROD, RSP_PROD, RingError, ring_entries};
use crate::mem::Frames;
use crate::testing::FakeFrames;

const BLK: usize = 112;

fn frames(count: u64) -> Vec<Mfn> {
    // In falling order, so that a slot across two frames does not lie in neighbours.
    (0..count).rev().map(Mfn).collect()
}

#[test]
fn sizes_are_those_of_the_real_rings() {
    assert_eq!(ring_entries(BLK, 1), 32);
    assert_eq!(ring_entries(BLK, 2), 64);
    assert_eq!(ring_entries(BLK, 16), 512);
    assert_eq!(ring_entries(12, 1), 256);
    assert_eq!(ring_entries(8, 1), 256);
    assert_eq!(ring_entries(8, 0), 0);
}

#[test]
fn impossible_indexes_are_errors() {
    let mem = FakeFrames::new(1);
    let mut front = FrontRing::<BLK>::new(&mem, frames(1));
    let mut back = BackRing::<BLK>::attach(&mem, frames(1)).unwrap();
    mem.store32(Mfn(0), REQ_PROD, 33);
    assert_eq!(
        back.pending(&mem),
        Err(RingError {
            claimed: 33,
            consumed: 0,
            possible: 32
        })
    );
    mem.store32(Mfn(0), REQ_PROD, 32);
    assert_eq!(back.pending(&mem), Ok(32));
    back.consume(2);
    mem.store32(Mfn(0), REQ_PROD, 1);
    assert!(back.pending(&mem).is_err(), "an index that went back");

    front.put(&mem, &[1]);
    assert!(front.push(&mem));
    mem.store32(Mfn(0), RSP_PROD, 2);
    assert!(front.pending(&mem).is_err(), "two responses, one request");
    mem.store32(Mfn(0), RSP_PROD, u32::MAX);
    assert!(BackRing::<BLK>::attach(&mem, frames(1)).is_ok());
    mem.store32(Mfn(0), RSP_PROD, 1 << 20);
    assert!(BackRing::<BLK>::attach(&mem, frames(1)).is_err());
}

#[test]
fn a_sleeping_end_is_notified_once() {
    let mem = FakeFrames::new(1);
    let mut front = FrontRing::<8>::new(&mem, frames(1));
    let mut back = BackRing::<8>::attach(&mem, frames(1)).unwrap();
    front.put(&mem, &[1; 8]);
    assert!(front.push(&mem), "the backend sleeps");
    front.put(&mem, &[2; 8]);
    assert!(!front.push(&mem), "the backend was told already");
    back.consume(2);
    assert_eq!(back.final_check(&mem), Ok(false));
    front.put(&mem, &[3; 8]);
    assert!(front.push(&mem));
    assert_eq!(back.final_check(&mem), Ok(true));
    back.respond(&mem, &[9; 8]);
    assert!(back.push(&mem));
    assert!(!back.push(&mem), "nothing new");
}

proptest! {
    /// Whatever the two ends do in turn, requests arrive in order and unchanged, and so do
    /// responses; nobody who went to sleep is left asleep with work to do.
    #[test]
    fn both_ends_agree(
        pages in 1u64..4,
        steps in prop::collection::vec((0u8..4, 1u32..40), 1..200),
    ) {
        let mem = FakeFrames::new(pages);
        let mut front = FrontRing::<BLK>::new(&mem, frames(pages));
        let mut back = BackRing::<BLK>::attach(&mem, frames(pages)).unwrap();
        let (mut sent, mut taken, mut answered) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let mut serial = 0u32;
        let (mut back_awake, mut front_awake) = (false, false);
        let slot = |n: u32| -> [u8; BLK] {
            core::array::from_fn(|i| n.to_le_bytes()[i % 4] ^ i as u8)
        };
        for (action, count) in steps {
            match action {
                0 => {
                    for _ in 0..count.min(front.free()) {
                        front.put(&mem, &slot(serial));
                        sent.push_back(serial);
                        serial += 1;
                    }
                    back_awake |= front.push(&mem);
                }
                1 if back_awake => {
                    for _ in 0..count.min(back.pending(&mem).unwrap()) {
                        prop_assert_eq!(back.copy_request(&mem, 0), slot(sent[0]));
                        back.consume(1);
                        taken.push_back(sent.pop_front().unwrap());
                    }
                    back_awake = back.final_check(&mem).unwrap();
                    prop_assert_eq!(back_awake, !sent.is_empty());
                }
                2 => {
                    for _ in 0..count.min(back.unanswered()) {
                        let n = taken.pop_front().unwrap();
                        back.respond(&mem, &slot(!n)[..16]);
                        answered.push_back(n);
                    }
                    front_awake |= back.push(&mem);
                }
                3 if front_awake => {
                    for _ in 0..count.min(front.pending(&mem).unwrap()) {
                        let n = answered.pop_front().unwrap();
                        prop_assert_eq!(&front.copy_response(&mem, 0)[..16], &slot(!n)[..16]);
                        front.consume(1);
                    }
                    front_awake = front.final_check(&mem).unwrap();
                    prop_assert_eq!(front_awake, !answered.is_empty());
                }
                _ => {}
            }
            prop_assert!(back_awake || sent.is_empty(), "a lost notification");
            prop_assert!(front_awake || answered.is_empty(), "a lost notification");
        }
    }

    /// A ring full of noise is at worst an error.
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 4096)) {
        let mem = FakeFrames::new(1);
        mem.write(Mfn(0), 0, &noise);
        if let Ok(mut back) = BackRing::<BLK>::attach(&mem, frames(1)) {
            while let Ok(1..) = back.pending(&mem) {
                let _ = back.copy_request(&mem, 0);
                back.consume(1);
                back.respond(&mem, &[0; 16]);
            }
        }
    }
}
