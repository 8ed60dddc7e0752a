//! The training loop: two replicas of the model, each on one thread, average their gradients in
//! every step.

use std::thread;

use burn::tensor::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::make::{
    adamw::{AdamW, Schedule},
    batches::{Batch, Batches},
    checkpoint::TrainingState,
    config::ModelConfig,
    error::{Error, Result},
    llama::{self, Llama},
    weights::{Spec, Weights, specs},
};

/// Number of replicas. It is two on every machine, because it decides the order of sums and so the
/// weights.
const REPLICAS: usize = 2;

/// A part of the training with one sequence length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// Number of steps.
    pub steps: usize,
    /// Rows in a step, over all replicas. A multiple of two.
    pub rows: usize,
    /// Tokens in a row.
    pub length: usize,
}

/// The model and the hyperparameters that decide its weights. Checkpoints store its `Debug` output.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Shape of the model.
    pub config: ModelConfig,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Learning rate over all phases.
    pub schedule: Schedule,
    /// The phases, in order.
    pub phases: Vec<Phase>,
}

impl Plan {
    /// Returns the number of steps in all phases.
    pub fn steps(&self) -> usize {
        self.phases.iter().map(|phase| phase.steps).sum()
    }

    /// Returns the number of training tokens in all phases.
    pub fn tokens(&self) -> usize {
        self.phases.iter().map(|phase| phase.steps * phase.rows * phase.length).sum()
    }

    /// Returns the phase of step number `step`.
    fn phase(&self, mut step: usize) -> Option<Phase> {
        for phase in &self.phases {
            if step < phase.steps {
                return Some(*phase);
            }
            step -= phase.steps;
        }
        None
    }
}

/// One training run.
pub struct Trainer<'a> {
    plan: &'a Plan,
    specs: Weights<Spec>,
    batches: Batches<'a>,
    state: TrainingState,
    pools: Vec<ThreadPool>,
    /// The sequence length of the current phase, and the model for it.
    model: Option<(usize, Llama)>,
}

impl<'a> Trainer<'a> {
    /// Starts with initial weights, or resumes from `state`.
    pub fn new(plan: &'a Plan, tokens: &'a [u32], state: Option<TrainingState>) -> Result<Self> {
        let state = state.unwrap_or_else(|| {
            let weights = llama::init(&plan.config, plan.seed, &Device::flex());
            TrainingState { step: 0, cursor: 0, optimiser: AdamW::new(&weights), weights }
        });
        let mut batches = Batches::new(tokens);
        batches.cursor = state.cursor;
        // One thread per replica, so that the operations of a replica do not synchronise threads.
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        Ok(Self {
            specs: specs(&plan.config),
            pools: (0..REPLICAS).map(pool).collect::<std::result::Result<_, _>>()?,
            model: None,
            plan,
            batches,
            state,
        })
    }

    /// Returns the state of the run.
    pub fn state(&self) -> &TrainingState {
        &self.state
    }

    /// Runs one step. Returns the mean loss in nats per token, or `None` when the plan is complete.
    pub fn step(&mut self) -> Result<Option<f32>> {
        let step = self.state.step;
        let Some(phase) = self.plan.phase(step) else { return Ok(None) };
        let batch = self.batches.next(phase.rows, phase.length);
        let (loss, gradients) = self.gradients(&batch, phase);
        if !loss.is_finite() {
            return Err(Error::Diverged(step));
        }
        let rate = self.plan.schedule.rate(step);
        let weights = self.state.weights.clone();
        self.state.weights =
            self.state.optimiser.step(weights, gradients, &self.specs, rate, step + 1);
        self.state.step = step + 1;
        self.state.cursor = self.batches.cursor;
        Ok(Some(loss))
    }

    /// Returns the mean loss and the mean gradients of a batch. Each replica computes half of it.
    fn gradients(&mut self, batch: &Batch, phase: Phase) -> (f32, Weights<Tensor<2>>) {
        if self.model.as_ref().is_none_or(|(length, _)| *length != phase.length) {
            let device = Device::flex().autodiff();
            self.model = Some((phase.length, Llama::new(&self.plan.config, phase.length, &device)));
        }
        let Some((_, model)) = &self.model else { unreachable!("set just above") };
        let weights = &self.state.weights;
        let half = batch.inputs.len() / REPLICAS;
        let parts = batch.inputs.chunks(half).zip(batch.targets.chunks(half)).zip(&self.pools);
        let results: Vec<_> = thread::scope(|scope| {
            let replicas: Vec<_> = parts
                .map(|((inputs, targets), pool)| {
                    scope.spawn(move || pool.install(|| backward(model, weights, inputs, targets)))
                })
                .collect();
            replicas.into_iter().filter_map(|replica| replica.join().ok()).collect()
        });
        assert_eq!(results.len(), REPLICAS, "a replica panicked");
        let mean = 1.0 / REPLICAS as f32;
        results
            .into_iter()
            .map(|(loss, gradients)| (loss * mean, gradients.map(|g| g.mul_scalar(mean))))
            .reduce(|(loss, sum), (other, gradients)| {
                (loss + other, sum.zip(gradients).map(|(a, b)| a.add(b)))
            })
            .unwrap_or_else(|| unreachable!("there are two replicas"))
    }
}

/// Returns the loss and the gradients of one replica.
fn backward(
    model: &Llama,
    weights: &Weights<Tensor<2>>,
    inputs: &[u32],
    targets: &[u32],
) -> (f32, Weights<Tensor<2>>) {
    let leaves = weights.as_ref().map(|w| Tensor::from_inner(w.clone()).require_grad());
    let loss = model.loss(&leaves, inputs, targets);
    let mut gradients = loss.backward();
    let gradients = leaves.map(|leaf| match leaf.grad_remove(&mut gradients) {
        Some(gradient) => gradient,
        None => leaf.inner().zeros_like(),
    });
    (loss.into_scalar::<f32>(), gradients)
}
