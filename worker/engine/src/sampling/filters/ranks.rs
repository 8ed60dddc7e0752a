//! Tokens of a row in buckets by the distance of their logits from the greatest one. Sorting all
//! tokens would take longer than the rest of a draw.
//!
//! `distance = logit_max / temperature - logit / temperature` never decreases as logits decrease,
//! whatever the rounding. So the tokens of a bucket are all likelier than those of the next.

use super::sorted::likelier;
use crate::sampling::Sampling;

/// Number of buckets. The last one holds all distances from [`DEPTH`] on.
const BUCKETS: usize = 2048;
/// Weights at this distance or beyond change no sum: `exp(-36.8)` is less than half a unit in the
/// last place of 1, the weight of the peak.
pub(super) const NEGLIGIBLE: f64 = 36.8;
/// Distance at which the last bucket begins.
const DEPTH: f64 = 40.0;
/// Number of buckets per unit of distance.
const SCALE: f64 = (BUCKETS - 1) as f64 / DEPTH;
/// Added to a non-negative number, leaves its rounded value in the lowest bits. Vectorises, unlike
/// a cast.
const WHOLE: f64 = 4_503_599_627_370_496.0;
/// Maximum relative error of [`weight`].
const WEIGHT_ERROR: f64 = 1e-9;
/// Number of tokens processed at a time.
const CHUNK: usize = 256;

/// Tokens of a row in buckets.
pub(super) struct Ranks<'a> {
    logits: &'a [f32],
    scale: Scale,
    /// Bucket of each token.
    buckets: Vec<u16>,
    /// Number of tokens in each bucket.
    counts: Vec<u32>,
    /// Sum of the weights in each bucket.
    masses: Vec<f64>,
}

/// Computes the distance of a logit from the greatest one.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    temperature: f64,
    peak: f64,
}

impl Scale {
    /// Returns `None` where distances are not numbers.
    pub(super) fn new(sampling: &Sampling, logits: &[f32]) -> Option<Self> {
        let temperature = f64::from(sampling.temperature);
        let peak = f64::from(greatest(logits)?) / temperature;
        (temperature > 0.0 && temperature.is_finite() && peak.is_finite())
            .then_some(Self { temperature, peak })
    }

    /// Returns the distance of a logit as the definition computes it; infinite for -∞.
    pub(super) fn distance(self, logit: f32) -> f64 {
        -(f64::from(logit) / self.temperature - self.peak)
    }

    /// Returns a logit with a distance of at least `distance`, close to the greatest such logit, or
    /// -∞. All logits below it have at least that distance.
    pub(super) fn logit_beyond(self, distance: f64) -> f32 {
        let logit = (self.peak - distance) * self.temperature;
        let logit = (logit - logit.abs() * f64::from(f32::EPSILON)) as f32;
        if self.distance(logit) >= distance { logit } else { f32::NEG_INFINITY }
    }
}

/// Returns the greatest logit, or `None` if one is not a number.
fn greatest(logits: &[f32]) -> Option<f32> {
    const LANES: usize = 16;
    let (mut lanes, mut numbers) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut add = |lane: usize, logit: f32| {
        lanes[lane] = if logit > lanes[lane] { logit } else { lanes[lane] };
        numbers[lane] &= !logit.is_nan();
    };
    for chunk in chunks {
        (0..LANES).for_each(|lane| add(lane, chunk[lane]));
    }
    rest.iter().for_each(|logit| add(0, *logit));
    let greatest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    numbers.iter().all(|number| *number).then_some(greatest)
}

/// Approximates `exp(-distance)` for a distance from 0 to [`DEPTH`], within [`WEIGHT_ERROR`]. Uses
/// basic operations only, so that it vectorises.
#[inline(always)]
fn weight(distance: f64) -> f64 {
    let doublings = distance * std::f64::consts::LOG2_E + WHOLE;
    let whole = doublings - WHOLE;
    let x = (whole - distance * std::f64::consts::LOG2_E) * std::f64::consts::LN_2;
    // The series of e^x for |x| <= ln(2)/2.
    let mut power = 1.0 / 40_320.0;
    for c in [1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * x + c;
    }
    power * f64::from_bits((1_023u64.wrapping_sub(doublings.to_bits() - WHOLE.to_bits())) << 52)
}

impl<'a> Ranks<'a> {
    /// Sorts the tokens of `logits [vocab]` into buckets.
    pub(super) fn new(scale: Scale, logits: &'a [f32]) -> Self {
        let mut ranks = Self {
            logits,
            scale,
            buckets: vec![0; logits.len()],
            counts: vec![0; BUCKETS],
            masses: vec![0.0; BUCKETS],
        };
        let mut weights = [0.0; CHUNK];
        for (logits, buckets) in logits.chunks(CHUNK).zip(ranks.buckets.chunks_mut(CHUNK)) {
            for ((logit, bucket), sum) in logits.iter().zip(buckets.iter_mut()).zip(&mut weights) {
                let distance = scale.distance(*logit);
                let distance = if distance < DEPTH { distance } else { DEPTH };
                *bucket = ((distance * SCALE + WHOLE).to_bits() - WHOLE.to_bits()) as u16;
                *sum = weight(distance);
            }
            for (bucket, weight) in buckets.iter().zip(&weights) {
                let bucket = usize::from(*bucket) % BUCKETS;
                ranks.counts[bucket] += 1;
                ranks.masses[bucket] += weight;
            }
        }
        ranks
    }

    /// Returns the smallest set of the most likely tokens whose weights sum to `top_p` of the
    /// total, in any order. `None` where unordered sums cannot decide that.
    pub(super) fn nucleus(&self, top_p: f64) -> Option<Vec<u32>> {
        // Bounds the difference between two sums of the same weights in different order, and
        // between these weights and exponentials. Each weight of the last bucket is less than the
        // rounding error.
        let slack = 4.0 * (WEIGHT_ERROR + self.logits.len() as f64 * f64::EPSILON);
        let enough = top_p * self.masses.iter().sum::<f64>();
        let (mut before, mut bucket) = (0.0, 0);
        while before + self.masses[bucket] < enough && bucket + 1 < BUCKETS {
            before += self.masses[bucket];
            bucket += 1;
        }
        let is_less = |sum: f64| sum * (1.0 + slack) < enough * (1.0 - slack);
        let is_enough = |sum: f64| sum * (1.0 - slack) >= enough * (1.0 + slack);
        if bucket + 1 == BUCKETS || !is_less(before) {
            return None;
        }
        let (mut kept, mut members) = self.up_to(bucket);
        members.sort_unstable_by(likelier(self.logits));
        let mut sum = before;
        for token in members {
            kept.push(token);
            sum += weight(self.scale.distance(self.logits[token as usize]));
            if is_enough(sum) {
                return Some(kept);
            }
            if !is_less(sum) {
                return None;
            }
        }
        None
    }

    /// Returns the tokens in earlier buckets, and those in this one.
    fn up_to(&self, bucket: usize) -> (Vec<u32>, Vec<u32>) {
        let before = self.counts[..bucket].iter().sum::<u32>() as usize;
        let mut kept = Vec::with_capacity(before + self.counts[bucket] as usize);
        let mut members = Vec::with_capacity(self.counts[bucket] as usize);
        let last = bucket as u16;
        let mut token = 0u32;
        for chunk in self.buckets.chunks(CHUNK) {
            // Most chunks have no such token.
            if chunk.iter().fold(false, |any, bucket| any | (*bucket <= last)) {
                for (token, bucket) in (token..).zip(chunk) {
                    if *bucket < last {
                        kept.push(token);
                    } else if *bucket == last {
                        members.push(token);
                    }
                }
            }
            token += chunk.len() as u32;
        }
        (kept, members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_within_their_error() {
        for i in 0..=400_000 {
            let distance = f64::from(i) * (DEPTH / 400_000.0);
            let want = libm::exp(-distance);
            assert!((weight(distance) - want).abs() <= 0.5 * WEIGHT_ERROR * want, "{distance}");
        }
        assert!(libm::exp(-NEGLIGIBLE) < 0.5 * f64::EPSILON, "it does not change a sum of 1");
    }
}
