//! Stories without end from a grammar of our own: the same seed and number always tell the same story.

pub mod cast;
pub mod grammar;

use crate::dice::Dice;
use grammar::{GrammarError, Plot, Rules, Slots};

const COMMON: &str = include_str!("../grammar/common.txt");
const PLOTS: &[&str] = &[
    include_str!("../grammar/lost.txt"),
    include_str!("../grammar/wish.txt"),
    include_str!("../grammar/share.txt"),
    include_str!("../grammar/fear.txt"),
    include_str!("../grammar/make.txt"),
    include_str!("../grammar/owner.txt"),
    include_str!("../grammar/rescue.txt"),
    include_str!("../grammar/lonely.txt"),
    include_str!("../grammar/seed.txt"),
    include_str!("../grammar/race.txt"),
    include_str!("../grammar/promise.txt"),
    include_str!("../grammar/birthday.txt"),
    include_str!("../grammar/moon.txt"),
    include_str!("../grammar/storm.txt"),
];

/// Seed of the stories to learn from.
pub const CORPUS_SEED: u64 = 1;
/// Seed of the stories that are never learned from.
pub const HELD_OUT_SEED: u64 = 2;
/// Number of held-out stories an evaluation reads.
pub const HELD_OUT_STORIES: u64 = 400;

/// The grammar, read and ready to tell.
#[derive(Debug, Clone)]
pub struct Storyteller {
    rules: Rules,
    plots: Vec<Plot>,
}

impl Storyteller {
    /// Reads the grammar files that this program was built with.
    pub fn new() -> Result<Self, GrammarError> {
        let plots = PLOTS.iter().map(|source| Plot::parse(source)).collect::<Result<_, _>>()?;
        Ok(Self { rules: Rules::parse(COMMON)?, plots })
    }

    /// Story number `index` of the corpus with this `seed`.
    pub fn story(&self, seed: u64, index: u64) -> Result<String, GrammarError> {
        self.tell(seed, index).map(|(story, _)| story)
    }

    /// The same with what its slots stood for: who the hero was, what was lost.
    pub fn tell(&self, seed: u64, index: u64) -> Result<(String, Slots), GrammarError> {
        let mut dice = Dice::nth(seed, index);
        let mut slots = cast::cast(&mut dice);
        let plot = &self.plots[dice.below(self.plots.len())];
        let story = plot.tell(&self.rules, &mut slots, &mut dice)?;
        Ok((story, slots))
    }

    /// Number of plots.
    pub fn plots(&self) -> usize {
        self.plots.len()
    }
}
