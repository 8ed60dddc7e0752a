//! Sampling on the device, so that a step copies two numbers per row to the host, not a row of
//! logits.
//!
//! Scores are in f32 here and in f64 by definition ([`crate::draw`]). So each score has an error
//! bound. A row whose best two scores are closer than their bounds is marked as uncertain, and the
//! caller draws it from the logits. So the token is the same wherever it is drawn.

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{
    buffer::Buffer,
    math::{ln, ln_1p, magnitude},
};
use crate::draw::Draw;

/// Number of units that share a part of a row.
pub(super) const UNITS: usize = 256;
/// Number of tokens of a part.
const PART: usize = 2048;
/// Number of words of a part's result: the best score, its error bound, its token, the upper bound
/// of all other scores, and whether a value was not finite.
const WORDS: usize = 5;
/// Number of rows of a cube that merges parts.
const MERGE_UNITS: u32 = 64;

/// Absolute error bound of the noise: a few units in the last place of both logarithms.
const NOISE_ERROR: f32 = 1e-5;
/// Relative error bound of a score's terms.
const RELATIVE_ERROR: f32 = 1e-6;

/// Exponent bits of infinity and NaN.
const NOT_FINITE: u32 = 0x7f80_0000;

/// `logits [m, n], draws [m, Draw::WORDS] -> [m, 2]`: the token, and 1 if it is uncertain.
pub(super) fn draw(logits: &Buffer, draws: &Buffer) -> Buffer {
    let (m, n) = (logits.dim(0), logits.dim(1));
    let out = Buffer::empty(&logits.0, [m, 2], DType::I32);
    if m * n == 0 {
        return out;
    }
    let count = n.div_ceil(PART);
    let parts = Buffer::empty(&logits.0, [m, count, WORDS], DType::I32);
    // SAFETY: buffers have the sizes of their shapes; the kernel skips tokens past the end.
    unsafe {
        draw_parts::launch_unchecked(
            logits.launcher(),
            CubeCount::Static(count as u32, m as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            logits.arg(),
            draws.arg(),
            parts.arg(),
            n as u32,
            UNITS,
        );
    }
    // SAFETY: buffers have the sizes of their shapes; the kernel skips rows past the end.
    unsafe {
        merge_draws::launch_unchecked(
            logits.launcher(),
            CubeCount::Static((m as u32).div_ceil(MERGE_UNITS), 1, 1),
            CubeDim::new_1d(MERGE_UNITS),
            parts.arg(),
            draws.arg(),
            out.arg(),
            m as u32,
            count as u32,
        );
    }
    out
}

#[cube]
fn mix32(x: u32) -> u32 {
    let mut x = (x ^ (x >> 16u32)) * 0x85eb_ca6bu32;
    x = (x ^ (x >> 13u32)) * 0xc2b2_ae35u32;
    x ^ (x >> 16u32)
}

/// Returns the noise of a token, -ln(-ln(u)), like [`crate::noise::Noise::of`].
#[cube]
fn noise(token: u32, low: u32, high: u32) -> f32 {
    let bits = mix32(mix32(token ^ low) + high);
    // Uses u, or 1 - u where u is above a half, since that one is more precise then.
    let upper = bits >= 0x8000_0000u32;
    let near = select(upper, !bits, bits);
    let part = (f32::cast_from(near) + 0.5f32) * 2.328_306_4e-10f32;
    let inner = select(upper, ln_1p(-part), ln(part));
    -ln(-inner)
}

/// Whether `x` is infinite or NaN.
#[cube]
fn is_not_finite(x: f32) -> bool {
    magnitude(x) >= NOT_FINITE
}

/// Draws from a part of a row. Each cube handles one part.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn draw_parts(
    logits: &[f32],
    draws: &[i32],
    parts: &mut [i32],
    n: u32,
    #[comptime] units: usize,
) {
    let n = n as usize;
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let unit = UNIT_POS as usize;
    let words = row * comptime!(Draw::WORDS);
    let temperature = f32::reinterpret(draws[words]);
    let (low, high) = (u32::reinterpret(draws[words + 1]), u32::reinterpret(draws[words + 2]));

    let mut score = f32::min_value();
    let mut bound = 0.0f32;
    let mut token = 0u32;
    let mut others = f32::min_value();
    let mut uncertain = 0u32;
    let end = min(part * PART + PART, n);
    let mut i = part * PART + unit;
    while i < end {
        let logit = logits[row * n + i];
        let mut candidate = logit;
        let mut slack = 0.0f32;
        if temperature != 0.0f32 {
            let scaled = logit / temperature;
            let noise = noise(i as u32, low, high);
            candidate = scaled + noise;
            slack = NOISE_ERROR + (Abs::abs(scaled) + Abs::abs(noise)) * RELATIVE_ERROR;
        }
        if is_not_finite(candidate) {
            uncertain = 1u32;
        }
        if candidate > score {
            others = max(others, score + bound);
            score = candidate;
            bound = slack;
            token = i as u32;
        } else {
            others = max(others, candidate + slack);
        }
        i += units;
    }

    let mut scores = Shared::<[f32]>::new_slice(units);
    let mut bounds = Shared::<[f32]>::new_slice(units);
    let mut tokens = Shared::<[u32]>::new_slice(units);
    let mut rest = Shared::<[f32]>::new_slice(units);
    let mut uncertains = Shared::<[u32]>::new_slice(units);
    scores[unit] = score;
    bounds[unit] = bound;
    tokens[unit] = token;
    rest[unit] = others;
    uncertains[unit] = uncertain;
    sync_cube();
    let mut width = (units / 2).runtime();
    while width > 0 {
        if unit < width {
            let other = unit + width;
            let wins = better(scores[other], tokens[other], scores[unit], tokens[unit]);
            let loser = select(wins, scores[unit] + bounds[unit], scores[other] + bounds[other]);
            rest[unit] = max(max(rest[unit], rest[other]), loser);
            let uncertain = uncertains[other];
            uncertains[unit] |= uncertain;
            if wins {
                scores[unit] = scores[other];
                bounds[unit] = bounds[other];
                tokens[unit] = tokens[other];
            }
        }
        sync_cube();
        width /= 2;
    }
    if unit == 0 {
        let at = (row * CUBE_COUNT_X as usize + part) * WORDS;
        parts[at] = i32::reinterpret(scores[0]);
        parts[at + 1] = i32::reinterpret(bounds[0]);
        parts[at + 2] = i32::reinterpret(tokens[0]);
        parts[at + 3] = i32::reinterpret(rest[0]);
        parts[at + 4] = i32::reinterpret(uncertains[0]);
    }
}

/// Whether the first of two candidates is better.
#[cube]
fn better(score: f32, token: u32, than: f32, other: u32) -> bool {
    score > than || (score == than && token < other)
}

/// Merges the parts of a row. Each unit handles one row.
#[cube(launch_unchecked, create_dummy_kernel)]
pub(in crate::cube) fn merge_draws(
    parts: &[i32],
    draws: &[i32],
    out: &mut [i32],
    m: u32,
    count: u32,
) {
    let row = ABSOLUTE_POS;
    if row < m as usize {
        let mut score = f32::min_value();
        let mut bound = 0.0f32;
        let mut token = 0u32;
        let mut others = f32::min_value();
        let mut uncertain = 0i32;
        for part in 0..count as usize {
            let at = (row * count as usize + part) * WORDS;
            let candidate = f32::reinterpret(parts[at]);
            let slack = f32::reinterpret(parts[at + 1]);
            others = max(others, f32::reinterpret(parts[at + 3]));
            uncertain |= parts[at + 4];
            // Parts are in the order of their tokens, so the first of equal scores wins.
            if candidate > score {
                others = max(others, score + bound);
                score = candidate;
                bound = slack;
                token = u32::reinterpret(parts[at + 2]);
            } else {
                others = max(others, candidate + slack);
            }
        }
        // Greedy draws compare the logits themselves, without any error.
        let noisy = f32::reinterpret(draws[row * comptime!(Draw::WORDS)]) != 0.0f32;
        if noisy && others >= score - bound {
            uncertain = 1i32;
        }
        out[row * 2] = i32::reinterpret(token);
        out[row * 2 + 1] = uncertain;
    }
}
