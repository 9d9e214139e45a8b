//! Cases of which there are too many to meet all: so many of them, the same each time.

use crate::explore::Script;

/// In so many choices one is not the usual.
const SELDOM: u64 = 24;

/// Numbers as by chance (splitmix64, by G. Steele and others, 2014).
pub struct Chance(u64);

impl Chance {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of so many; mostly the first.
    pub fn choose(&mut self, options: usize) -> usize {
        if options < 2 || !self.next().is_multiple_of(SELDOM) {
            return 0;
        }
        let others = options as u64 - 1;
        1 + usize::try_from(self.next() % others).unwrap_or(0)
    }
}

/// Runs `case` so many times.
///
/// # Errors
/// The first that a case gives.
pub fn sample(
    seed: u64,
    cases: u64,
    mut case: impl FnMut(&mut Script) -> Result<(), String>,
) -> Result<(), String> {
    (0..cases).try_for_each(|number| {
        let mut script = Script::by(Chance::new(
            seed ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03),
        ));
        case(&mut script)
    })
}

#[test]
fn the_same_is_chosen_every_time() {
    let chosen = |seed| {
        let mut chance = Chance::new(seed);
        (0..1000).map(|_| chance.choose(5)).collect::<Vec<_>>()
    };
    assert_eq!(chosen(1), chosen(1));
    assert_ne!(chosen(1), chosen(2));
    let usual = chosen(1).into_iter().filter(|choice| *choice == 0).count();
    assert!((900..1000).contains(&usual), "{usual}");
}
