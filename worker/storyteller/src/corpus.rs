//! An endless corpus of stories from a grammar. The same seed and index always give the same story.

pub mod cast;
pub mod grammar;

use crate::rng::SeededRng;
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

/// Seed of the training stories.
pub const CORPUS_SEED: u64 = 1;
/// Seed of the held-out stories, which are never trained on.
pub const HELD_OUT_SEED: u64 = 2;
/// Number of held-out stories in an evaluation.
pub const HELD_OUT_STORIES: u64 = 400;

/// The parsed grammar, which generates stories.
#[derive(Debug, Clone)]
pub struct Storyteller {
    rules: Rules,
    plots: Vec<Plot>,
}

impl Storyteller {
    /// Parses the embedded grammar files.
    pub fn new() -> Result<Self, GrammarError> {
        let plots = PLOTS.iter().map(|source| Plot::parse(source)).collect::<Result<_, _>>()?;
        Ok(Self { rules: Rules::parse(COMMON)?, plots })
    }

    /// Returns story number `index` of the corpus with this `seed`.
    pub fn story(&self, seed: u64, index: u64) -> Result<String, GrammarError> {
        self.story_and_slots(seed, index).map(|(story, _)| story)
    }

    /// Returns the same story with the values of its slots, for instance the hero's name.
    pub fn story_and_slots(&self, seed: u64, index: u64) -> Result<(String, Slots), GrammarError> {
        let mut rng = SeededRng::nth(seed, index);
        let mut slots = cast::cast(&mut rng);
        let plot = &self.plots[rng.below(self.plots.len())];
        let story = plot.generate(&self.rules, &mut slots, &mut rng)?;
        Ok((story, slots))
    }

    /// Returns the number of plots.
    pub fn plots(&self) -> usize {
        self.plots.len()
    }
}
