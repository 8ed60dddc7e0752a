//! The numbers behind the committed weights: change one and `train` makes another model.

use crate::make::{
    adamw::Schedule,
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

impl Recipe {
    /// The bundled model. Most steps at about the length of a story, the last ones at the whole context.
    pub fn bundled() -> Self {
        Self {
            tokenizer_stories: 20_000,
            stories: 60_000,
            target: Plan {
                config: ModelConfig::target(),
                seed: 1,
                // Higher than this, the names of the cast, each rare in itself, never come apart.
                schedule: Schedule(vec![(0, 1e-5), (200, 1.5e-3), (6000, 1e-5)]),
                phases: vec![
                    Phase { steps: 5970, rows: 8, length: 320 },
                    Phase { steps: 30, rows: 4, length: 1024 },
                ],
            },
            draft: Plan {
                config: ModelConfig::draft(),
                seed: 2,
                schedule: Schedule(vec![(0, 1e-5), (200, 3e-3), (1000, 1.5e-3), (3020, 1e-5)]),
                phases: vec![
                    Phase { steps: 3000, rows: 8, length: 320 },
                    Phase { steps: 20, rows: 4, length: 1024 },
                ],
            },
        }
    }

    /// The same models after a minute or two: enough to see the loss fall and words form.
    pub fn quick() -> Self {
        let mut recipe = Self { tokenizer_stories: 3_000, stories: 3_000, ..Self::bundled() };
        for plan in [&mut recipe.target, &mut recipe.draft] {
            plan.schedule = Schedule(vec![(0, 1e-5), (20, 2.5e-3), (155, 1e-5)]);
            plan.phases = vec![
                Phase { steps: 150, rows: 8, length: 320 },
                Phase { steps: 5, rows: 4, length: 1024 },
            ];
        }
        recipe
    }
}
