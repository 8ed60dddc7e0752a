//! Prompts that begin alike, one after the other: `--shared-prefix`.

use std::time::{Duration, Instant};

use stoker_engine::Model;

use super::{
    child::Tell,
    drive::{Driven, Pace, Seen, median},
    error::Error,
};

/// What the rows are called: of the first prompt that begins so, and of the second.
pub(super) const NAMES: [&str; 2] = ["prefix cold", "prefix warm"];
/// Tokens of each prompt after those that are shared.
const OWN: usize = 8;
/// Tokens of each answer.
const OUTPUT: usize = 16;

/// Tokens of a prompt that begins with so many that are shared, and of its answer.
pub(super) fn longest(shared: usize) -> usize {
    shared + OWN + OUTPUT
}

/// Answers two prompts that begin with the same `shared` tokens; the pace of each.
pub(super) fn run(model: Model, shared: usize, tell: &mut Tell) -> Result<Vec<Pace>, Error> {
    // Room for all of them, so that nothing is forgotten.
    let mut driven = Driven::new(model, &[longest(shared); 3]);
    tell.stage(|| "another prompt, to warm up".into())?;
    let other = driven.tokens(shared + OWN);
    answer(&mut driven, other)?;
    let shared = driven.tokens(shared);
    let mut paces = Vec::with_capacity(NAMES.len());
    for name in NAMES {
        tell.stage(|| name.into())?;
        let prompt = [shared.clone(), driven.tokens(OWN)].concat();
        paces.push(answer(&mut driven, prompt)?);
    }
    Ok(paces)
}

/// Answers one prompt.
fn answer(driven: &mut Driven, prompt: Vec<u32>) -> Result<Pace, Error> {
    let prompt_tokens = prompt.len();
    let before = driven.load().prefix_tokens_found;
    let begun = Instant::now();
    driven.submit_prompt(0, prompt, OUTPUT)?;
    let (mut first, mut steps): (Option<Duration>, Vec<Duration>) = (None, Vec::new());
    loop {
        let (step, reports) = driven.step()?;
        for (_, at, seen) in reports {
            match (seen, first) {
                (Seen::Token, None) => first = Some(at.saturating_duration_since(begun)),
                (Seen::Token, Some(_)) => steps.push(step),
                _ => {}
            }
        }
        // The first token comes with the prompt's last step.
        if steps.len() + 1 >= OUTPUT {
            break;
        }
    }
    let step = median(&mut steps).unwrap_or_default();
    Ok(Pace {
        prompt_tokens,
        cached_prompt_tokens: Some(driven.load().prefix_tokens_found - before),
        output_tokens: OUTPUT,
        first_token: first,
        step,
        decode_rate: 1.0 / step.as_secs_f64(),
        prefill_rate: first.map(|first| prompt_tokens as f64 / first.as_secs_f64()),
        ..Pace::default()
    })
}
