//! Goes through all sequences of choices that a run can meet, each run from its beginning.

use crate::sample::Chance;

/// The choices of one run: those given, then always the first, or by chance.
#[derive(Default)]
pub struct Script {
    given: Vec<usize>,
    chance: Option<Chance>,
    /// What was chosen, of how many.
    met: Vec<(usize, usize)>,
}

impl Script {
    /// By chance.
    pub fn by(chance: Chance) -> Self {
        Self {
            chance: Some(chance),
            ..Self::default()
        }
    }

    /// Chooses one of so many; the first is what happens when nothing is wrong.
    pub fn choose(&mut self, options: usize) -> usize {
        assert!(options > 0, "there is always something that happens");
        let given = self.given.get(self.met.len()).copied();
        let by_chance = || {
            self.chance
                .as_mut()
                .map_or(0, |chance| chance.choose(options))
        };
        let choice = given.unwrap_or_else(by_chance);
        assert!(choice < options, "a run must be the same every time");
        self.met.push((choice, options));
        choice
    }

    /// The next script, depth first; `None` if this was the last.
    fn next(mut self) -> Option<Self> {
        while let Some((choice, options)) = self.met.pop() {
            if choice + 1 < options {
                let mut given: Vec<_> = self.met.iter().map(|(choice, _)| *choice).collect();
                given.push(choice + 1);
                return Some(Self {
                    given,
                    ..Self::default()
                });
            }
        }
        None
    }
}

/// Runs `case` once for each sequence of choices.
///
/// # Errors
/// The first that a case gives.
pub fn explore(mut case: impl FnMut(&mut Script) -> Result<(), String>) -> Result<(), String> {
    let mut script = Some(Script::default());
    while let Some(mut this) = script {
        case(&mut this)?;
        script = this.next();
    }
    Ok(())
}

#[test]
fn all_sequences_are_met_once() {
    let mut seen = Vec::new();
    explore(|script| {
        let first = script.choose(2);
        let second = if first == 0 { script.choose(3) } else { 9 };
        seen.push((first, second));
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, [(0, 0), (0, 1), (0, 2), (1, 9)]);
}
