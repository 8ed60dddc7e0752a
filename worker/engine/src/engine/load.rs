//! Load of an engine.

/// Load of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Number of sequences in the batch.
    pub running: usize,
    /// Number of sequences that wait for admission.
    pub waiting: usize,
    /// Number of tokens still to compute.
    pub queued_tokens: usize,
    /// Number of blocks that no sequence uses.
    pub free_blocks: usize,
    /// Number of free blocks whose content is still cached.
    pub cached_blocks: usize,
    /// Number of blocks in the KV cache.
    pub total_blocks: usize,
    /// Number of completed steps.
    pub step: u64,
    /// Number of preemptions of sequences.
    pub preemptions: u64,
    /// Number of draft tokens that were verified.
    pub drafted: u64,
    /// Number of draft tokens that were accepted.
    pub accepted: u64,
    /// Number of prompt tokens looked up in the prefix cache.
    pub prefix_tokens: u64,
    /// Number of prompt tokens found there.
    pub prefix_tokens_found: u64,
    /// Number of requests rejected, or dropped while they waited, because they could not meet their
    /// deadline.
    pub deadline_rejections: u64,
}
