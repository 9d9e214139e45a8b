//! Decides when to stop copying while the guest runs: a pure function of the rounds so far.
//!
//! Each round sends what the last one left dirty, while the guest dirties more.  Two figures decide.  The
//! *expected downtime* is the time to send what is dirty now, at the last measured speed; once it is short
//! enough, the guest is suspended.  A round *pays* if it will be clearly shorter than the last one, because
//! the guest dirties more the longer a round takes.  A guest may calm down by itself, so one round that does
//! not pay is forgiven.  After that, more rounds would cost time and bandwidth and leave the same blackout.

use std::time::Duration;

use crate::job::OnTimeout;

/// A round counts as shorter if it takes at most this fraction of the last one's time.
const SHORTER: f64 = 0.8;
/// Number of rounds in a row that may fail to pay.
const FORGIVEN: u32 = 2;
/// Rounds with fewer pages say little about the speed, because latency dominates.
const TELLING: u64 = 256;

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Target blackout.
    pub(crate) max_downtime: Duration,
    /// Limit on the time with the guest running.
    pub(crate) timeout: Option<Duration>,
    /// What to do at that limit.
    pub(crate) on_timeout: OnTimeout,
    /// Limit on the rounds with the guest running.
    pub(crate) max_rounds: u32,
    /// A guest is never suspended if the blackout is known to exceed this.
    pub(crate) max_blackout: Option<Duration>,
}

/// A finished round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Pages sent over the network: those that were not all zero.
    pub(crate) pages: u64,
    /// From the first page until everything had arrived.
    pub(crate) time: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run another round with the guest running.
    GoOn,
    /// Suspend the guest and send the rest, for this reason.
    Stop(Reason),
    /// Give up for this reason, because the operator wants the guest left where it is then.
    GiveUp(Reason),
}

/// Why copying with the guest running ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The blackout will be short enough.
    ShortEnough,
    /// The guest dirties memory as fast as it is sent.
    DoesNotPay,
    /// The limit on rounds is reached.
    Rounds,
    /// The limit on time is reached.
    Time,
    /// The blackout would exceed its limit.
    TooLong,
}

impl Reason {
    /// For the operator.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::ShortEnough => "the rest fits into the blackout",
            Self::DoesNotPay => "another round would not reduce what is left",
            Self::Rounds => "the limit on rounds is reached",
            Self::Time => "the limit on copying time is reached",
            Self::TooLong => "the rest would exceed the largest blackout allowed",
        }
    }
}

/// What the rounds have shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    rounds: u32,
    /// Pages per second, by the last round that tells.
    rate: Option<f64>,
    unpaid: u32,
}

impl Progress {
    /// Adds a round, after which `dirty` pages must be sent again and the job has taken `elapsed`; returns
    /// what to do next.
    pub(crate) fn after(
        &mut self,
        round: Round,
        dirty: u64,
        elapsed: Duration,
        limits: &Limits,
    ) -> Verdict {
        self.rounds += 1;
        self.measure(round);
        let expected = self.expected(dirty);
        if expected <= limits.max_downtime {
            return Verdict::Stop(Reason::ShortEnough);
        }
        let pays = expected.as_secs_f64() <= round.time.as_secs_f64() * SHORTER;
        self.unpaid = if pays { 0 } else { self.unpaid + 1 };
        let reason = match limits.timeout {
            Some(timeout) if elapsed >= timeout => Reason::Time,
            _ if self.rounds >= limits.max_rounds => Reason::Rounds,
            // With that much time left, the guest may still calm down.
            None if self.unpaid >= FORGIVEN => Reason::DoesNotPay,
            _ => return Verdict::GoOn,
        };
        let is_known = self.rate.is_some();
        if is_known && limits.max_blackout.is_some_and(|most| expected > most) {
            return Verdict::GiveUp(Reason::TooLong);
        }
        match limits.on_timeout {
            OnTimeout::Abort if limits.timeout.is_some() => Verdict::GiveUp(reason),
            _ => Verdict::Stop(reason),
        }
    }

    /// The time to send this many pages.
    pub(crate) fn expected(&self, pages: u64) -> Duration {
        match self.rate {
            _ if pages == 0 => Duration::ZERO,
            // No round has shown the speed, so it may take for ever.
            None => Duration::MAX,
            Some(rate) => Duration::try_from_secs_f64(pages as f64 / rate).unwrap_or(Duration::MAX),
        }
    }

    /// Pages per second, if that is known.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate
    }

    fn measure(&mut self, round: Round) {
        let seconds = round.time.as_secs_f64();
        if round.pages > 0 && seconds > 0.0 && (round.pages >= TELLING || self.rate.is_none()) {
            self.rate = Some(round.pages as f64 / seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Limits, Progress, Reason, Round, Verdict};
    use crate::job::OnTimeout;

    const LIMITS: Limits = Limits {
        max_downtime: Duration::from_millis(300),
        timeout: None,
        on_timeout: OnTimeout::Abort,
        max_rounds: 30,
        max_blackout: None,
    };

    /// A guest that writes `writes` pages per second, picked at random, of `hot` pages that it uses, on a
    /// way that takes `rate` pages per second.
    #[derive(Clone, Copy, Debug)]
    struct Guest {
        pages: u64,
        hot: f64,
        writes: f64,
        rate: f64,
    }

    impl Guest {
        fn dirties(&self, time: f64) -> u64 {
            // Writes of so long a time hit each hot page with this probability at least once.
            (self.hot * (1.0 - (-self.writes * time / self.hot).exp())) as u64
        }

        /// Plays a migration; rounds, time with the guest running, pages left, and how it ended.
        fn play(&self, limits: &Limits) -> (u32, f64, u64, Verdict) {
            let (mut progress, mut elapsed, mut todo) = (Progress::default(), 0.0, self.pages);
            loop {
                let time = todo as f64 / self.rate;
                elapsed += time;
                let dirty = self.dirties(time);
                let round = Round {
                    pages: todo,
                    time: Duration::from_secs_f64(time),
                };
                let verdict =
                    progress.after(round, dirty, Duration::from_secs_f64(elapsed), limits);
                if verdict != Verdict::GoOn {
                    return (progress.rounds, elapsed, dirty, verdict);
                }
                todo = dirty;
            }
        }
    }

    fn guests() -> impl Strategy<Value = Guest> {
        (
            1_000_u64..4_000_000,
            0.001_f64..1.0,
            1.0_f64..1e6,
            1e3_f64..1e6,
        )
            .prop_map(|(pages, share, writes, rate)| Guest {
                pages,
                hot: (pages as f64 * share).max(1.0),
                writes,
                rate,
            })
    }

    #[test]
    fn an_idle_guest_is_stopped_after_one_round() {
        let idle = Guest {
            pages: 65536,
            hot: 100.0,
            writes: 10.0,
            rate: 10_000.0,
        };
        let (rounds, _, _, verdict) = idle.play(&LIMITS);
        assert_eq!((rounds, verdict), (1, Verdict::Stop(Reason::ShortEnough)));
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_way_is_not_copied_for_ever() {
        let busy = Guest {
            pages: 65536,
            hot: 60_000.0,
            writes: 1e6,
            rate: 10_000.0,
        };
        let (rounds, _, _, verdict) = busy.play(&LIMITS);
        assert_eq!((rounds, verdict), (2, Verdict::Stop(Reason::DoesNotPay)));
    }

    #[test]
    fn the_operator_decides_what_happens_when_time_is_over() {
        let busy = Guest {
            pages: 65536,
            hot: 60_000.0,
            writes: 1e6,
            rate: 10_000.0,
        };
        let timeout = Some(Duration::from_secs(60));
        let (_, elapsed, _, verdict) = busy.play(&Limits { timeout, ..LIMITS });
        assert_eq!(verdict, Verdict::GiveUp(Reason::Time));
        assert!(elapsed >= 60.0);
        let on_timeout = OnTimeout::StopAndCopy;
        let limits = Limits {
            timeout,
            on_timeout,
            ..LIMITS
        };
        assert_eq!(busy.play(&limits).3, Verdict::Stop(Reason::Time));
    }

    #[test]
    fn no_guest_is_stopped_for_longer_than_it_may_stand_still() {
        // What is dirty takes 6 s on the way.
        let busy = Guest {
            pages: 65536,
            hot: 60_000.0,
            writes: 1e6,
            rate: 10_000.0,
        };
        for (seconds, expected) in [
            (5, Verdict::GiveUp(Reason::TooLong)),
            (7, Verdict::Stop(Reason::DoesNotPay)),
        ] {
            let limits = Limits {
                max_blackout: Some(Duration::from_secs(seconds)),
                ..LIMITS
            };
            assert_eq!(busy.play(&limits).3, expected);
        }
    }

    #[test]
    fn a_round_that_did_not_pay_is_forgiven_once() {
        let mut progress = Progress::default();
        let second = Duration::from_secs(1);
        let round = |pages| Round {
            pages,
            time: Duration::from_secs_f64(pages as f64 / 1000.0),
        };
        let go = |progress: &mut Progress, pages, dirty| {
            progress.after(round(pages), dirty, second, &LIMITS)
        };
        assert_eq!(go(&mut progress, 10_000, 9_000), Verdict::GoOn);
        assert_eq!(go(&mut progress, 9_000, 3_000), Verdict::GoOn);
        assert_eq!(go(&mut progress, 3_000, 2_900), Verdict::GoOn);
        assert_eq!(
            go(&mut progress, 2_900, 2_900),
            Verdict::Stop(Reason::DoesNotPay)
        );
    }

    #[test]
    fn small_rounds_do_not_tell_the_speed_of_the_way() {
        let mut progress = Progress::default();
        let slow = Duration::from_secs(1);
        let round = |pages, time| Round { pages, time };
        progress.after(round(100_000, slow), 5_000_000, slow, &LIMITS);
        progress.after(round(3, slow), 5_000_000, slow, &LIMITS);
        assert_eq!(progress.rate(), Some(100_000.0));
    }

    proptest! {
        #[test]
        fn it_always_ends_within_the_rounds(guest in guests()) {
            let (rounds, ..) = guest.play(&LIMITS);
            prop_assert!(rounds <= LIMITS.max_rounds);
        }

        #[test]
        fn it_stops_early_only_if_the_rest_is_short(guest in guests()) {
            let (_, _, left, verdict) = guest.play(&LIMITS);
            if verdict == Verdict::Stop(Reason::ShortEnough) {
                prop_assert!(left as f64 / guest.rate <= 0.3001);
            }
        }

        /// A guest that uses little enough memory, or writes slowly enough, always gets its short blackout.
        #[test]
        fn what_can_converge_does(mut guest in guests()) {
            guest.writes = guest.writes.min(guest.rate * 0.5);
            let (rounds, _, _, verdict) = guest.play(&LIMITS);
            prop_assert!(
                verdict == Verdict::Stop(Reason::ShortEnough),
                "{verdict:?} after {rounds} rounds"
            );
        }

        /// Beyond Xen's own policy of five rounds nothing is lost: the blackout is no longer than a fixed
        /// number of rounds would leave, but for what one round may bring by chance.
        #[test]
        fn it_leaves_no_more_than_five_rounds_would(guest in guests()) {
            let (_, _, left, verdict) = guest.play(&LIMITS);
            let mut todo = guest.pages;
            for _ in 0..5 {
                todo = guest.dirties(todo as f64 / guest.rate);
            }
            let short_enough = verdict == Verdict::Stop(Reason::ShortEnough);
            prop_assert!(short_enough || left as f64 <= todo as f64 * 2.0 + 1.0);
        }
    }
}
