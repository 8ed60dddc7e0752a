use std::thread;

use stoker_ops::KV_BLOCK;

use super::*;

fn numbers(blocks: &[Block]) -> Vec<u32> {
    blocks.iter().map(Block::number).collect()
}

/// Tokens of `blocks` blocks, different for each `text`.
fn tokens(text: u32, blocks: usize) -> Vec<u32> {
    (0..(blocks * KV_BLOCK) as u32).map(|i| text * 1000 + i).collect()
}

/// A sequence that has computed all of `tokens`.
fn computed(pool: &BlockPool, scope: &Scope, tokens: &[u32]) -> BlockTable {
    let mut table = BlockTable::find(pool, scope, tokens);
    table.extend(pool.allocate(tokens.len() / KV_BLOCK - table.len()).unwrap_or_default());
    table.cache(scope, tokens);
    table
}

#[test]
fn blocks_are_free_again_when_the_last_handle_is_dropped() {
    let pool = BlockPool::new(3);
    let two = pool.allocate(2).unwrap_or_default();
    assert_eq!(numbers(&two), [0, 1]);
    assert!(pool.allocate(2).is_none(), "all or nothing");
    assert_eq!(pool.free(), 1);
    let shared = two[0].clone();
    drop(two);
    assert_eq!(pool.free(), 2);
    drop(shared);
    assert_eq!(pool.free(), pool.total());
}

#[test]
fn cached_blocks_are_found_by_their_whole_prefix() {
    let (pool, scope) = (BlockPool::new(8), Scope::default());
    let text = tokens(0, 3);
    let table = computed(&pool, &scope, &text);
    let find = |scope: &Scope, tokens: &[u32]| numbers(&BlockTable::find(&pool, scope, tokens));
    assert_eq!(find(&scope, &text), [0, 1, 2], "while it is referenced");
    assert_eq!(find(&scope, &text[..40]), [0, 1], "whole blocks only");
    drop(table);
    assert_eq!((pool.free(), pool.evictable()), (8, 3));
    assert_eq!(find(&scope, &text), [0, 1, 2], "and afterwards");
    assert_eq!(find(&scope, &text[KV_BLOCK..]), [0; 0], "the same tokens at another position");
    let mut other = text.clone();
    other[20] += 1;
    assert_eq!(find(&scope, &other), [0], "up to the first difference");
    for scope in [Scope::shared("a", ""), Scope::shared("", "a"), Scope::Request(0)] {
        assert_eq!(find(&scope, &text), [0; 0], "{scope:?}");
    }
}

#[test]
fn a_tenant_and_its_salt_are_compared_separately() {
    let pool = BlockPool::new(4);
    drop(computed(&pool, &Scope::shared("ab", "c"), &tokens(0, 1)));
    assert_eq!(BlockTable::find(&pool, &Scope::shared("a", "bc"), &tokens(0, 1)).len(), 0);
    assert_eq!(BlockTable::find(&pool, &Scope::shared("ab", "c"), &tokens(0, 1)).len(), 1);
}

#[test]
fn the_least_recently_released_is_evicted_first_and_suffixes_before_prefixes() {
    let (pool, scope) = (BlockPool::new(6), Scope::default());
    let (old, new) = (tokens(0, 2), tokens(1, 3));
    drop(computed(&pool, &scope, &old));
    drop(computed(&pool, &scope, &new));
    let found = |text: &[u32]| BlockTable::find(&pool, &scope, text).len();
    let allocate = |count| pool.allocate(count).map_or(0, |blocks| blocks.len());
    assert_eq!((allocate(1), found(&old), found(&new)), (1, 2, 3), "one block had no content");
    // `new` was looked up last.
    assert_eq!((allocate(2), found(&old), found(&new)), (2, 1, 3));
    assert_eq!((allocate(5), found(&old), found(&new)), (5, 0, 1));
    assert_eq!((pool.free(), pool.evictable(), allocate(7)), (6, 1, 0));
}

#[test]
fn sequences_that_compute_the_same_share_one_block_afterwards() {
    let (pool, scope) = (BlockPool::new(4), Scope::default());
    let text = tokens(0, 2);
    let mut tables = [0, 1].map(|_| {
        let mut table = BlockTable::default();
        table.extend(pool.allocate(2).unwrap_or_default());
        table
    });
    for table in &mut tables {
        table.cache(&scope, &text);
    }
    assert_eq!(tables.each_ref().map(|table| numbers(table)), [[0, 1]; 2]);
    assert!(tables[0].same_cached_prefix(&tables[1]));
    assert_eq!((pool.free(), pool.evictable()), (2, 0));
    let [one, other] = tables;
    drop(one);
    assert_eq!((pool.free(), pool.evictable()), (2, 0));
    drop(other);
    assert_eq!((pool.free(), pool.evictable()), (4, 2));
}

#[test]
fn the_successor_of_an_evicted_block_is_not_found_after_its_recomputation() {
    let (pool, scope) = (BlockPool::new(3), Scope::default());
    let text = tokens(0, 2);
    let table = computed(&pool, &scope, &text);
    let second = table[1].clone();
    drop(table);
    // The first is evicted while the second is referenced, which no table does, and then computed
    // again.
    assert_eq!(pool.allocate(2).map(|blocks| blocks.len()), Some(2));
    let again = computed(&pool, &scope, &text[..KV_BLOCK]);
    assert_eq!(BlockTable::find(&pool, &scope, &text).len(), 1);
    drop((second, again));
    assert_eq!(pool.free(), 3);
}

#[test]
fn all_blocks_are_free_after_concurrent_use() {
    let pool = BlockPool::new(24);
    thread::scope(|threads| {
        for thread in 0..4u32 {
            let pool = &pool;
            threads.spawn(move || {
                let mut state = thread + 1;
                let mut held = Vec::new();
                for _ in 0..3_000 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let draw = state >> 16;
                    let scope = Scope::Request((draw % 2).into());
                    let text = tokens(draw % 3, 1 + draw as usize % 4);
                    let mut table = BlockTable::find(pool, &scope, &text);
                    if let Some(own) = pool.allocate(text.len() / KV_BLOCK - table.len()) {
                        table.extend(own);
                        table.cache(&scope, &text);
                        held.push(table.prefix(draw as usize % (table.len() + 1)));
                        held.push(table);
                    }
                    if held.len() > 2 {
                        held.swap_remove(draw as usize % held.len());
                    }
                }
            });
        }
    });
    assert_eq!(pool.free(), pool.total());
    assert!(pool.evictable() > 0);
}
