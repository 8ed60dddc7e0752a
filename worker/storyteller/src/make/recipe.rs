//! The hyperparameters of the committed weights. A change to any of them changes the trained model.

use crate::make::{
    adamw::Schedule,
    config::ModelConfig,
    trainer::{Phase, Plan},
};

/// The models to train and their training data.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Number of stories that the tokenizer is trained on, from the start of the corpus.
    pub tokenizer_stories: u64,
    /// Number of stories that the models are trained on.
    pub stories: u64,
    /// Training plan of the model.
    pub target: Plan,
    /// Training plan of the draft model.
    pub draft: Plan,
}

impl Recipe {
    /// Returns the recipe of the bundled models. Most steps have rows of about the length of a
    /// story, the last ones of the full context.
    pub fn bundled() -> Self {
        Self {
            tokenizer_stories: 20_000,
            stories: 60_000,
            target: Plan {
                config: ModelConfig::target(),
                seed: 1,
                // At higher rates the model does not learn to distinguish the characters' names.
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

    /// Returns a recipe for the same models that takes a minute or two, as a test of the pipeline.
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
