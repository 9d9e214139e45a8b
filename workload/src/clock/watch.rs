//! Judging a sequence of readings of one clock.

use serde_json::{Value, json};

/// Steps back are kept with their particulars up to this number; all are counted.
const STEPS_KEPT: usize = 8;

/// What is known of one clock.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    last: Option<i128>,
    samples: u64,
    steps_back: u64,
    worst_back: i128,
    largest_gap: i128,
    gap_began: i128,
    steps: Vec<(i128, i128)>,
}

impl Watch {
    /// Takes a reading, in the clock's own unit.
    pub fn sample(&mut self, value: i128) {
        self.samples += 1;
        if let Some(last) = self.last {
            let change = value - last;
            if change < 0 {
                self.steps_back += 1;
                self.worst_back = self.worst_back.max(-change);
                if self.steps.len() < STEPS_KEPT {
                    self.steps.push((last, value));
                }
            } else if change > self.largest_gap {
                self.largest_gap = change;
                self.gap_began = last;
            }
        }
        self.last = Some(value);
    }

    /// How often the clock stepped back.
    #[must_use]
    pub fn steps_back(&self) -> u64 {
        self.steps_back
    }

    /// Forgets the largest gap, so that the next one is that of what happens from now on.
    pub fn forget_gap(&mut self) {
        self.largest_gap = 0;
    }

    /// The figures; `unit` (`ns`, `ticks`) ends their names.
    #[must_use]
    pub fn figures(&self, unit: &str) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|(from, to)| json!([number(*from), number(*to)]))
            .collect();
        json!({
            "samples": self.samples, "steps_back": self.steps_back, "steps": steps,
            format!("worst_back_{unit}"): number(self.worst_back),
            format!("largest_gap_{unit}"): number(self.largest_gap),
            format!("gap_began_{unit}"): number(self.gap_began),
            format!("last_{unit}"): self.last.map(number),
        })
    }
}

/// JSON integers have 64 bits; clock readings fit but for absurd ones, which become text.
fn number(value: i128) -> Value {
    u64::try_from(value)
        .map(Value::from)
        .or_else(|_| i64::try_from(value).map(Value::from))
        .unwrap_or_else(|_| value.to_string().into())
}

/// Changes of the difference between two clocks that should run alike.
#[derive(Debug, Clone, Default)]
pub struct Jumps {
    last: Option<i64>,
    count: u64,
    kept: Vec<(i64, i64)>,
}

impl Jumps {
    /// Takes a difference, read at `at`; changes above `tolerance` are kept.
    pub fn sample(&mut self, at: i64, difference: i64, tolerance: i64) {
        let change = difference.saturating_sub(*self.last.get_or_insert(difference));
        if change.saturating_abs() > tolerance {
            self.count += 1;
            if self.kept.len() < 2 * STEPS_KEPT {
                self.kept.push((at, change));
            }
            self.last = Some(difference);
        }
    }

    /// `[[at, change], …]`, the first ones, and how many there were.
    #[must_use]
    pub fn figures(&self) -> Value {
        let kept: Vec<Value> = self.kept.iter().map(|(at, by)| json!([at, by])).collect();
        json!({ "count": self.count, "first": kept })
    }
}

#[cfg(test)]
mod tests {
    use super::{Jumps, Watch};

    #[test]
    fn steps_back_and_gaps_are_found() {
        let mut watch = Watch::default();
        for value in [10, 11, 11, 500, 499, 501, 100] {
            watch.sample(value);
        }
        let figures = watch.figures("ns");
        assert_eq!(watch.steps_back(), 2);
        assert_eq!(figures["worst_back_ns"], 401);
        assert_eq!(
            (&figures["largest_gap_ns"], &figures["gap_began_ns"]),
            (&489.into(), &11.into())
        );
        assert_eq!(figures["steps"][0], serde_json::json!([500, 499]));
        watch.forget_gap();
        watch.sample(103);
        assert_eq!(watch.figures("ns")["largest_gap_ns"], 3);
    }

    #[test]
    fn only_jumps_beyond_the_tolerance_count() {
        let mut jumps = Jumps::default();
        for (at, difference) in [(0, 100), (1, 105), (2, 2_000), (3, 1_998), (4, -5)] {
            jumps.sample(at, difference, 10);
        }
        assert_eq!(
            jumps.figures()["first"],
            serde_json::json!([[2, 1900], [4, -2005]])
        );
    }
}
