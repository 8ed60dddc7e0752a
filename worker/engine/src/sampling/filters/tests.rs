#![allow(clippy::unwrap_used, reason = "tests")]

use std::cmp::Ordering;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Straightforward implementation that shares no code with the tested one.
fn by_sorting_everything(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let top_k = (1..logits.len()).contains(&sampling.top_k);
    let (top_p, min_p) = (sampling.top_p < 1.0, sampling.min_p > 0.0);
    let likelier = |a: &u32, b: &u32| -> Ordering {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
    };
    let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
    kept.sort_by(likelier);
    if top_k {
        kept.truncate(sampling.top_k);
    }
    let scaled = |token: u32| f64::from(logits[token as usize]) / f64::from(sampling.temperature);
    let peak = scaled(kept[0]);
    let weights: Vec<f64> = kept.iter().map(|t| libm::exp(scaled(*t) - peak)).collect();
    if top_p {
        let enough = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let before = weights.iter().take_while(|w| {
            let is_below = sum < enough;
            sum += **w;
            is_below
        });
        kept.truncate(before.count().max(1));
    }
    if min_p {
        let above = weights.iter().take_while(|w| **w >= f64::from(sampling.min_p));
        kept.truncate(kept.len().min(above.count()).max(1));
    }
    kept
}

/// Logits of a vocabulary.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let size = prop_oneof![1..4usize, 4..40usize, 200..300usize, 1_000..1_200usize];
    let spread = select(vec![0.0, 1e-3, 0.3, 1.0, 3.0, 10.0, 60.0, 1e4, 1e30]);
    // Rounded to steps, so that many are equal.
    let step = select(vec![0.0, 1e-3, 0.5]);
    let special =
        [f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, -f32::NAN];
    let specials = vec((any::<prop::sample::Index>(), select(special.to_vec())), 0..4);
    // Most rows are finite.
    let specials = prop_oneof![3 => Just(Vec::new()), 1 => specials];
    let bells = size.prop_flat_map(|size| vec(vec(-1.0..1.0f64, 4), size));
    (bells, spread, step, specials).prop_map(|(bells, spread, step, specials)| {
        let logit = |parts: &Vec<f64>| {
            let logit = parts.iter().sum::<f64>() * spread;
            (if step > 0.0 { (logit / step).round() * step } else { logit }) as f32
        };
        let mut logits: Vec<f32> = bells.iter().map(logit).collect();
        for (index, special) in specials {
            let at = index.index(logits.len());
            logits[at] = special;
        }
        logits
    })
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let nearly_one = 1.0 - f32::EPSILON / 2.0;
    let top_ps =
        vec![1.0, 0.95, 0.9, 0.5, 0.25, 0.999_999, nearly_one, 1e-9, f32::MIN_POSITIVE, 0.0];
    (
        select(vec![1.0, 0.7, 0.01, 2.0, 100.0, 1e-30, f32::MIN_POSITIVE / 2.0, f32::MAX]),
        select(vec![0, 0, 0, 1, 5, 40, 255]),
        prop_oneof![select(top_ps), 0.0..1.0f32],
        prop_oneof![3 => Just(0.0), 1 => 0.0..1.0f32, 1 => select(vec![1.0, 2.0, 0.5, 1e-30])],
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            choice: 0,
        })
}

fn assert_same(sampling: &Sampling, logits: &[f32]) -> Result<(), TestCaseError> {
    let Some(mut kept) = candidates(sampling, logits) else {
        prop_assert!(keep_all(sampling, logits.len()));
        return Ok(());
    };
    let mut want = by_sorting_everything(sampling, logits);
    // A row that is not finite is refused before anything is drawn from it.
    if logits.iter().all(|logit| *logit < f32::INFINITY) {
        for position in 0..4 {
            let drawn = sampling.draw(position).pick(logits, want.iter().copied());
            prop_assert_eq!(sampling.pick(logits, position), drawn);
        }
    }
    kept.sort_unstable();
    want.sort_unstable();
    prop_assert_eq!(kept, want);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn filters_and_draws_match_the_definition(logits in logits(), sampling in sampling()) {
        assert_same(&sampling, &logits)?;
    }
}

/// A row like those of large models: most weights are large enough to change a sum.
fn large(spread: f32) -> Vec<f32> {
    let uniform = |n: u64| (crate::sampling::mix64(n) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    (0..50_000).map(|token| (0..4).map(|i| uniform(4 * token + i)).sum::<f32>() * spread).collect()
}

#[test]
fn large_vocabularies_match_the_definition() {
    for spread in [0.0, 0.5, 3.0, 8.0, 30.0] {
        let logits = large(spread);
        for top_p in [0.1, 0.5, 0.9, 0.99, 0.999_999, 1.0] {
            for min_p in [0.0, 0.01, 0.2] {
                for top_k in [0, 50] {
                    let sampling = Sampling { top_k, top_p, min_p, ..Sampling::default() };
                    assert_same(&sampling, &logits).unwrap();
                }
            }
        }
    }
}

#[test]
fn nucleus_rarely_falls_back_to_the_definition() {
    for spread in [0.5, 3.0, 8.0, 30.0] {
        let logits = large(spread);
        let scale = Scale::new(&Sampling::default(), &logits).unwrap();
        let ranks = Ranks::new(scale, &logits);
        let decided =
            (1..100).filter(|percent| ranks.nucleus(f64::from(*percent) / 100.0).is_some());
        assert!(decided.count() >= 97, "spread {spread}");
    }
}
