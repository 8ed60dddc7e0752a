use std::thread;

use stoker_ops::KV_BLOCK;

use super::*;

fn numbers(blocks: &[Block]) -> Vec<u32> {
    blocks.iter().map(Block::number).collect()
}

/// Tokens of so many blocks, another text for each `text`.
fn tokens(text: u32, blocks: usize) -> Vec<u32> {
    (0..(blocks * KV_BLOCK) as u32).map(|i| text * 1000 + i).collect()
}

/// A sequence that has computed all of `tokens`.
fn computed(pool: &BlockPool, scope: &Scope, tokens: &[u32]) -> Table {
    let mut table = Table::find(pool, scope, tokens);
    table.extend(pool.take(tokens.len() / KV_BLOCK - table.len()).unwrap_or_default());
    table.keep(scope, tokens);
    table
}

#[test]
fn blocks_come_home_when_the_last_handle_goes() {
    let pool = BlockPool::new(3);
    let two = pool.take(2).unwrap_or_default();
    assert_eq!(numbers(&two), [0, 1]);
    assert!(pool.take(2).is_none(), "all or nothing");
    assert_eq!(pool.free(), 1);
    let shared = two[0].clone();
    drop(two);
    assert_eq!(pool.free(), 2);
    drop(shared);
    assert_eq!(pool.free(), pool.total());
}

#[test]
fn what_is_kept_is_found_by_all_that_comes_before_it() {
    let (pool, scope) = (BlockPool::new(8), Scope::default());
    let text = tokens(0, 3);
    let table = computed(&pool, &scope, &text);
    let find = |scope: &Scope, tokens: &[u32]| numbers(&Table::find(&pool, scope, tokens));
    assert_eq!(find(&scope, &text), [0, 1, 2], "while it is held");
    assert_eq!(find(&scope, &text[..40]), [0, 1], "whole blocks only");
    drop(table);
    assert_eq!((pool.free(), pool.idle()), (8, 3));
    assert_eq!(find(&scope, &text), [0, 1, 2], "and after");
    assert_eq!(find(&scope, &text[KV_BLOCK..]), [0; 0], "the same tokens at another place");
    let mut other = text.clone();
    other[20] += 1;
    assert_eq!(find(&scope, &other), [0], "up to what differs");
    for scope in [Scope::shared("a", ""), Scope::shared("", "a"), Scope::Request(0)] {
        assert_eq!(find(&scope, &text), [0; 0], "{scope:?}");
    }
}

#[test]
fn a_tenant_and_its_salt_are_two_names() {
    let pool = BlockPool::new(4);
    drop(computed(&pool, &Scope::shared("ab", "c"), &tokens(0, 1)));
    assert_eq!(Table::find(&pool, &Scope::shared("a", "bc"), &tokens(0, 1)).len(), 0);
    assert_eq!(Table::find(&pool, &Scope::shared("ab", "c"), &tokens(0, 1)).len(), 1);
}

#[test]
fn what_was_let_go_first_is_forgotten_first_and_ends_before_beginnings() {
    let (pool, scope) = (BlockPool::new(6), Scope::default());
    let (old, new) = (tokens(0, 2), tokens(1, 3));
    drop(computed(&pool, &scope, &old));
    drop(computed(&pool, &scope, &new));
    let found = |text: &[u32]| Table::find(&pool, &scope, text).len();
    let take = |count| pool.take(count).map_or(0, |blocks| blocks.len());
    assert_eq!((take(1), found(&old), found(&new)), (1, 2, 3), "there was one of no content");
    // The look at `new` was the last one.
    assert_eq!((take(2), found(&old), found(&new)), (2, 1, 3));
    assert_eq!((take(5), found(&old), found(&new)), (5, 0, 1));
    assert_eq!((pool.free(), pool.idle(), take(7)), (6, 1, 0));
}

#[test]
fn two_that_compute_the_same_hold_one_block_after() {
    let (pool, scope) = (BlockPool::new(4), Scope::default());
    let text = tokens(0, 2);
    let mut tables = [0, 1].map(|_| {
        let mut table = Table::default();
        table.extend(pool.take(2).unwrap_or_default());
        table
    });
    for table in &mut tables {
        table.keep(&scope, &text);
    }
    assert_eq!(tables.each_ref().map(|table| numbers(table)), [[0, 1]; 2]);
    assert!(tables[0].same_kept(&tables[1]));
    assert_eq!((pool.free(), pool.idle()), (2, 0));
    let [one, other] = tables;
    drop(one);
    assert_eq!((pool.free(), pool.idle()), (2, 0));
    drop(other);
    assert_eq!((pool.free(), pool.idle()), (4, 2));
}

#[test]
fn what_follows_a_forgotten_block_is_not_found_after_its_like() {
    let (pool, scope) = (BlockPool::new(3), Scope::default());
    let text = tokens(0, 2);
    let table = computed(&pool, &scope, &text);
    let second = table[1].clone();
    drop(table);
    // The first is forgotten while the second is held, which no table does, and then computed again.
    assert_eq!(pool.take(2).map(|blocks| blocks.len()), Some(2));
    let again = computed(&pool, &scope, &text[..KV_BLOCK]);
    assert_eq!(Table::find(&pool, &scope, &text).len(), 1);
    drop((second, again));
    assert_eq!(pool.free(), 3);
}

#[test]
fn every_block_comes_home_after_a_storm() {
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
                    let mut table = Table::find(pool, &scope, &text);
                    if let Some(own) = pool.take(text.len() / KV_BLOCK - table.len()) {
                        table.extend(own);
                        table.keep(&scope, &text);
                        held.push(table.beginning(draw as usize % (table.len() + 1)));
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
    assert!(pool.idle() > 0);
}
