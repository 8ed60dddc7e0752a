#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::OnceLock;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::{
    super::tests::measured::{load, sampler},
    *,
};
use crate::sampling::{Sampler, Sampling, mix64};

const GREEDY: Sampling =
    Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, choice: 0 };
const DRAWN: Sampling = Sampling { temperature: 0.9, top_k: 40, seed: 11, ..GREEDY };

fn model() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(storyteller::draft())).clone()
}

fn drafter(blocks: usize) -> DraftModel {
    DraftModel::new(model(), blocks, 8)
}

/// Sequences, each of a request of its own unless changed.
struct Texts {
    ids: Vec<SequenceId>,
    tokens: Vec<Vec<u32>>,
    sampler: Sampler,
}

impl Texts {
    fn new(tokens: Vec<Vec<u32>>, sampling: Sampling) -> Self {
        let ids = (0..tokens.len() as u64).map(|request| SequenceId { request, choice: 0 });
        Self { ids: ids.collect(), tokens, sampler: sampler(sampling, &[]) }
    }

    fn draft(&self, drafter: &mut DraftModel, max_tokens: &[usize]) -> Vec<Vec<u32>> {
        let requests: Vec<_> = (self.ids.iter().zip(&self.tokens))
            .map(|(id, tokens)| DraftRequest {
                id: *id,
                tokens,
                max_drafts: 16,
                sampler: &self.sampler,
            })
            .collect();
        assert_eq!(drafter.capacities(&requests).len(), requests.len());
        let proposals = drafter.draft(&requests, max_tokens);
        assert!(
            proposals
                .iter()
                .zip(max_tokens)
                .all(|(proposal, max_tokens)| proposal.len() <= *max_tokens)
        );
        proposals
    }

    /// Drafts until all sequences have caught up.
    fn draft_all(&self, drafter: &mut DraftModel, max_tokens: usize) -> Vec<Vec<u32>> {
        let mut drafts = || self.draft(drafter, &vec![max_tokens; self.tokens.len()]);
        let all = |proposals: &Vec<Vec<u32>>| proposals.iter().all(|p| p.len() == max_tokens);
        (0..50).map(|_| drafts()).find(all).unwrap()
    }
}

/// The proposals of new drafters without any cache.
fn fresh(texts: &Texts, sampling: Sampling, max_tokens: usize) -> Vec<Vec<u32>> {
    let alone = |tokens: &Vec<u32>| {
        Texts::new(vec![tokens.clone()], sampling).draft_all(&mut drafter(64), max_tokens).remove(0)
    };
    texts.tokens.iter().map(alone).collect()
}

fn prompt(seed: u64, length: usize) -> Vec<u32> {
    (0..length as u64).map(|i| (mix64(seed * 10_007 + i) % 1500) as u32 + 2).collect()
}

/// One step of three sequences: for each, the number of draft tokens, how many are accepted, and
/// the token drawn after those.
type StepActions = [(usize, usize, Option<u32>); 3];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn proposals_are_those_of_a_fresh_drafter_whatever_was_accepted(
        steps in prop::collection::vec(any::<[(u8, u8, u8); 3]>(), 1..12),
        lengths in [1usize..40, 100..180, 1..300],
        blocks in 25usize..60,
        released in prop::option::of(0usize..12),
        greedy: bool,
    ) {
        let sampling = if greedy { GREEDY } else { DRAWN };
        let prompts = (1..).zip(lengths).map(|(seed, length)| prompt(seed, length)).collect();
        let mut texts = Texts::new(prompts, sampling);
        let mut drafter = drafter(blocks);
        for (i, step) in steps.into_iter().enumerate() {
            let actions: StepActions = step.map(|(max_tokens, accepted, next)| {
                let next = (next % 2 == 0).then_some(u32::from(next) + 2);
                (usize::from(max_tokens % 7), usize::from(accepted % 7), next)
            });
            let max_tokens = actions.map(|(max_tokens, ..)| max_tokens);
            let proposals = texts.draft(&mut drafter, &max_tokens);
            for ((tokens, proposal), (_, accepted, next)) in texts.tokens.iter_mut().zip(&proposals).zip(actions) {
                let accepted = accepted.min(proposal.len());
                tokens.extend(&proposal[..accepted]);
                // The target draws a token, possibly the one that was proposed but not verified.
                let after = proposal.get(accepted).copied();
                tokens.push(next.or(after).unwrap_or(7));
                // Or no drafts are requested for some steps.
                tokens.extend((0..next.unwrap_or(0) % 4).map(|token| 40 + token));
            }
            if Some(i) == released {
                drafter.release(texts.ids[i % 3]);
            }
        }
        let max_tokens = vec![4; 3];
        let mut last = texts.draft(&mut drafter, &max_tokens);
        for _ in 0..10 {
            // A sequence with a backlog or without blocks gets no proposal; the others get the
            // exact one.
            for (proposal, exact) in last.iter().zip(fresh(&texts, sampling, 4)) {
                prop_assert!(proposal.is_empty() || *proposal == exact);
            }
            if last.iter().all(|proposal| !proposal.is_empty()) {
                break;
            }
            last = texts.draft(&mut drafter, &max_tokens);
        }
        prop_assert!(blocks < 50 || last.iter().all(|proposal| !proposal.is_empty()));
        texts.ids.iter().for_each(|id| drafter.release(*id));
        prop_assert_eq!(drafter.blocks.free(), drafter.blocks.total());
    }
}

#[test]
fn the_backlog_of_a_long_prompt_is_computed_in_chunks() {
    let texts = Texts::new(vec![prompt(1, 20), prompt(2, 3 * CHUNK)], GREEDY);
    let mut drafter = drafter(64);
    let mut steps = Vec::new();
    loop {
        let before = drafter.caches.get(&texts.ids[1]).map_or(0, |cache| cache.computed);
        let proposals = texts.draft(&mut drafter, &[2, 2]);
        assert_eq!(proposals[0].len(), 2, "the short one does not wait for the long one");
        let now = drafter.caches[&texts.ids[1]].computed;
        assert!(now - before <= CHUNK + 2 * USUAL_BACKLOG);
        steps.push(proposals[1].len());
        if !proposals[1].is_empty() {
            break;
        }
    }
    // The short one used a part of the first chunk.
    assert_eq!(steps, [0, 0, 0, 2]);
    assert_eq!(texts.draft_all(&mut drafter, 5), fresh(&texts, GREEDY, 5));
}

#[test]
fn the_least_recently_used_cache_is_evicted() {
    // Each needs two blocks.
    let texts = Texts::new((1..4).map(|seed| prompt(seed, KV_BLOCK + 3)).collect(), GREEDY);
    let mut drafter = drafter(4);
    assert_eq!(texts.draft(&mut drafter, &[3, 0, 0])[0].len(), 3);
    assert_eq!(texts.draft(&mut drafter, &[0, 3, 0])[1].len(), 3);
    assert_eq!(drafter.blocks.free(), 0);
    assert_eq!(texts.draft(&mut drafter, &[0, 0, 3])[2].len(), 3);
    let in_cache: Vec<_> = texts.ids.iter().map(|id| drafter.caches.contains_key(id)).collect();
    assert_eq!(in_cache, [false, true, true]);
    // Three at once do not fit: one gets no drafts, and the others retain their blocks.
    let proposals = texts.draft(&mut drafter, &[3, 3, 3]);
    assert_eq!(proposals.iter().map(Vec::len).collect::<Vec<_>>(), [0, 3, 3]);
    // One that could never fit evicts no other.
    let long = Texts::new(vec![prompt(9, 5 * KV_BLOCK)], GREEDY);
    let mut alone = self::drafter(4);
    assert_eq!(long.draft(&mut alone, &[3]), [Vec::<u32>::new()]);
}

#[test]
fn sequences_of_a_request_share_full_blocks() {
    let shared = prompt(1, 5 * KV_BLOCK + 3);
    let mut texts = Texts::new(vec![shared.clone(), shared], DRAWN);
    texts.ids[1] = SequenceId { choice: 1, ..texts.ids[0] };
    texts.tokens[1].push(9);
    let mut drafter = drafter(32);
    texts.draft_all(&mut drafter, 1);
    let [one, two] = [0, 1].map(|i| &drafter.caches[&texts.ids[i]].table);
    let same = one.iter().zip(two).filter(|(a, b)| a.number() == b.number()).count();
    // Both computed the prompt in the same steps, so that there was nothing to find yet.
    assert_eq!(same, 0);
    drafter.release(texts.ids[1]);
    texts.draft_all(&mut drafter, 1);
    let [one, two] = [0, 1].map(|i| &drafter.caches[&texts.ids[i]].table);
    let numbers = |table: &[crate::kv_cache::Block]| {
        table.iter().take(5).map(crate::kv_cache::Block::number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(one), numbers(two));
    assert_eq!(texts.draft_all(&mut drafter, 6), fresh(&texts, DRAWN, 6));
    drafter.release(texts.ids[0]);
    assert_eq!(texts.draft_all(&mut drafter, 6), fresh(&texts, DRAWN, 6));
    texts.ids.iter().for_each(|id| drafter.release(*id));
    assert_eq!(drafter.blocks.free(), drafter.blocks.total());
}

#[test]
fn nothing_is_proposed_from_logits_that_are_not_finite() {
    // The last norm overflows for values above one.
    let file = |name| storyteller::file(storyteller::draft(), name).unwrap();
    let mut weights = file("model.safetensors").to_vec();
    let (header, metadata) = SafeTensors::read_metadata(&weights).unwrap();
    let (start, end) = metadata.info("model.norm.weight").unwrap().data_offsets;
    let norm = &mut weights[8 + header + start..8 + header + end];
    norm.chunks_exact_mut(2).for_each(|weight| weight.copy_from_slice(&[0x7f, 0x7f]));
    let files: storyteller::Files = Box::leak(Box::new([
        ("config.json", file("config.json")),
        ("tokenizer.json", file("tokenizer.json")),
        ("model.safetensors", &*weights.leak()),
    ]));
    let mut drafter = DraftModel::new(load(files), 8, 1);
    let texts = Texts::new(vec![prompt(1, 10)], GREEDY);
    assert_eq!(texts.draft(&mut drafter, &[4]), [Vec::<u32>::new()]);
}
