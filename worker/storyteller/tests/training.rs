//! Training: gradients are correct, the loss falls, and a resumed run equals an uninterrupted one.
#![allow(clippy::unwrap_used)] // A test may panic.

use burn::tensor::{Device, Tensor, TensorData};
use storyteller::make::{
    adamw::Schedule,
    checkpoint::{from_safetensors, load_checkpoint, save_checkpoint, to_safetensors},
    config::ModelConfig,
    llama::{self, Llama},
    trainer::{Phase, Plan, Trainer},
    weights::{Weights, specs},
};
use storyteller::rng::SeededRng;

fn tiny(steps: usize) -> Plan {
    Plan {
        config: ModelConfig::llama(16, 2, 4, 2, 24, 32),
        seed: 5,
        schedule: Schedule(vec![(4, 1e-2), (steps.max(5), 1e-4)]),
        phases: vec![Phase { steps, rows: 4, length: 16 }],
    }
}

/// Returns "stories" that count upwards from a random number.
fn counting(tokens: usize) -> Vec<u32> {
    let mut rng = SeededRng::new(1);
    let starts = std::iter::repeat_with(|| 2 + rng.below(20) as u32);
    starts
        .flat_map(|start| std::iter::once(0).chain(start..start + 8).chain([1]))
        .take(tokens)
        .collect()
}

fn values(weights: &Weights<Tensor<2>>) -> Vec<f32> {
    weights.iter().flat_map(|tensor| tensor.try_to_vec_as::<f32>().unwrap()).collect()
}

#[test]
fn the_loss_falls_within_a_few_steps() {
    let (plan, tokens) = (tiny(60), counting(2_000));
    let mut trainer = Trainer::new(&plan, &tokens, None).unwrap();
    let losses: Vec<f32> = std::iter::from_fn(|| trainer.step().unwrap()).collect();
    assert_eq!(losses.len(), 60);
    assert!(losses[0] > 3.0, "the loss of initial weights is {}", losses[0]);
    assert!(losses[59] < losses[0] / 2.0, "{losses:?}");
}

#[test]
fn the_same_plan_gives_the_same_weights() {
    let (plan, tokens) = (tiny(5), counting(500));
    let train = || {
        let mut trainer = Trainer::new(&plan, &tokens, None).unwrap();
        while trainer.step().unwrap().is_some() {}
        values(&trainer.state().weights)
    };
    assert_eq!(train(), train());
}

#[test]
fn a_resumed_run_gives_the_same_weights_as_an_uninterrupted_one() {
    let (plan, tokens) = (tiny(8), counting(500));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");

    let mut uninterrupted = Trainer::new(&plan, &tokens, None).unwrap();
    for _ in 0..4 {
        uninterrupted.step().unwrap();
    }
    save_checkpoint(&path, "plan", &plan.config, uninterrupted.state()).unwrap();
    while uninterrupted.step().unwrap().is_some() {}

    let load = |name| load_checkpoint(&path, name, &plan.config, &Device::flex()).unwrap();
    let mut resumed = Trainer::new(&plan, &tokens, load("plan")).unwrap();
    assert_eq!(resumed.state().step, 4);
    while resumed.step().unwrap().is_some() {}
    assert_eq!(values(&uninterrupted.state().weights), values(&resumed.state().weights));
    assert!(load("another plan").is_none(), "a checkpoint of another plan is ignored");
}

#[test]
fn gradients_match_finite_differences_of_the_loss() {
    let config = tiny(1).config;
    let (device, tracked) = (Device::flex(), Device::flex().autodiff());
    let tokens = counting(33);
    let loss = |weights: &Weights<Tensor<2>>, device: &Device| {
        Llama::new(&config, 16, device).loss(weights, &tokens[..32], &tokens[1..])
    };
    let weights = llama::init(&config, 5, &device);
    let leaves = weights.as_ref().map(|w| Tensor::from_inner(w.clone()).require_grad());
    let mut gradients = loss(&leaves, &tracked).backward();
    let gradients = leaves.map(|leaf| leaf.grad_remove(&mut gradients).unwrap());
    for (i, (spec, gradient)) in specs(&config).zip(gradients).iter().enumerate() {
        let gradient = gradient.try_to_vec_as::<f32>().unwrap();
        let index = (i * 37 + 3) % gradient.len();
        let loss_with = |delta: f32| {
            let mut parameter = 0;
            let weights = weights.as_ref().map(|tensor| {
                let mut values = tensor.try_to_vec_as::<f32>().unwrap();
                if parameter == i {
                    values[index] += delta;
                }
                parameter += 1;
                Tensor::from_data(TensorData::new(values, tensor.dims()), &device)
            });
            f64::from(loss(&weights, &device).into_scalar::<f32>())
        };
        let difference = (loss_with(4e-3) - loss_with(-4e-3)) / 8e-3;
        let error = (difference - f64::from(gradient[index])).abs();
        assert!(error < 1e-3, "{}: {difference} against {}", spec.name, gradient[index]);
    }
}

#[test]
fn logits_do_not_depend_on_later_tokens() {
    let config = tiny(1).config;
    let weights = llama::init(&config, 5, &Device::flex());
    let model = Llama::new(&config, 16, &Device::flex());
    let logits = |tokens: &[u32]| model.logits(&weights, tokens).try_into_vec_as::<f32>().unwrap();
    let mut tokens = counting(16);
    let before = logits(&tokens);
    tokens[9] += 1;
    let after = logits(&tokens);
    let row = |all: &[f32], t: usize| all[t * 32..(t + 1) * 32].to_vec();
    assert!((0..9).all(|t| row(&before, t) == row(&after, t)));
    assert!((9..16).all(|t| row(&before, t) != row(&after, t)));
}

#[test]
fn stored_weights_are_read_with_bfloat16_precision() {
    let config = tiny(1).config;
    let weights = llama::init(&config, 5, &Device::flex());
    let bytes = to_safetensors(&config, &weights).unwrap();
    let read = from_safetensors(&config, &bytes, &Device::flex()).unwrap();
    for (a, b) in values(&weights).into_iter().zip(values(&read)) {
        assert!((a - b).abs() <= a.abs() / 256.0, "{a} became {b}");
    }
    assert!(
        from_safetensors(&ModelConfig::draft(), &bytes, &Device::flex()).is_err(),
        "a different shape is rejected"
    );
    assert!(
        from_safetensors(&config, &bytes[..bytes.len() - 1], &Device::flex()).is_err(),
        "a truncated file is rejected"
    );
}

#[test]
fn the_learning_rate_interpolates_its_points() {
    let schedule = Schedule(vec![(10, 1.0), (30, 0.5), (40, 0.0)]);
    let rates = [0, 5, 10, 20, 30, 35, 40, 99].map(|step| schedule.rate(step));
    assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
}
