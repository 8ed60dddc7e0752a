//! The numbers behind the committed weights: change one and `train` makes another model.

use crate::make::{
    config::ModelConfig,
    trainer::{Phase, Plan},
};

/// What to train, on how much.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Stories the tokenizer learns from: the first of the corpus.
    pub tokenizer_stories: u64,
    /// Stories the models learn from.
    pub stories: u64,
    /// The model itself.
    pub target: Plan,
    /// Its draft.
    pub draft: Plan,
}

/// Seed of the stories to learn from.
pub const CORPUS_SEED: u64 = 1;
/// Seed of the stories that are never learned from.
pub const HELD_OUT_SEED: u64 = 2;
/// Number of held-out stories an evaluation reads.
pub const HELD_OUT_STORIES: u64 = 400;

impl Recipe {
    /// The bundled model. Most steps at about the length of a story, the last ones at the whole context.
    pub fn bundled() -> Self {
        Self::with_steps(4500, 150, 3500, 100, 60_000)
    }

    /// The same models after a minute or two: enough to see the loss fall and words form.
    pub fn quick() -> Self {
        Self::with_steps(150, 5, 150, 5, 3_000)
    }

    fn with_steps(
        target: usize,
        target_long: usize,
        draft: usize,
        draft_long: usize,
        stories: u64,
    ) -> Self {
        let plan = |config, seed, peak, steps, long| Plan {
            config,
            seed,
            peak,
            phases: vec![
                Phase { steps, rows: 8, length: 320 },
                Phase { steps: long, rows: 4, length: 1024 },
            ],
        };
        Self {
            tokenizer_stories: stories.min(20_000),
            stories,
            target: plan(ModelConfig::target(), 1, 2.5e-3, target, target_long),
            draft: plan(ModelConfig::draft(), 2, 4e-3, draft, draft_long),
        }
    }
}
