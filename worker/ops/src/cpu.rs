//! The operations on burn's CPU backend: slices in, slices out, and the glue to its tensors.

pub mod attention;
mod flex;
pub mod isa;
pub mod lanes;
pub mod linear;
mod measure;
pub mod norm;
pub mod rope;

pub use measure::{kernel_time, read_rate, threads};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};

/// Work below this many multiply-adds stays on one thread: handing it over would cost more.
const WORTH_SHARING: usize = 1 << 18;

/// Calls `each` with the index of every item, on all threads of the pool or, for little work, on this
/// one. Items are independent, so the outcome is the same.
fn for_each<I>(items: I, work: usize, each: impl Fn((usize, I::Item)) + Sync + Send)
where
    I: IndexedParallelIterator,
{
    let items = items.enumerate();
    if work < WORTH_SHARING {
        let count = items.len();
        items.with_min_len(count.max(1)).for_each(each);
    } else {
        items.for_each(each);
    }
}
