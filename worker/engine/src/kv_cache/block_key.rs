//! The key of a cached block: its tokens and everything before them, compared exactly. A hash could
//! collide.

use std::sync::Arc;

use stoker_ops::KV_BLOCK;

/// Scope of prefix cache sharing: blocks computed in one scope are never found in another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Requests of a tenant that have the same salt.
    Shared(Arc<CacheNamespace>),
    /// One request, by its number in the engine.
    Request(u64),
}

/// A tenant and the salt of its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CacheNamespace {
    tenant: String,
    salt: String,
}

impl Scope {
    /// Returns the scope of all requests of `tenant` with this `salt`.
    pub fn shared(tenant: impl Into<String>, salt: impl Into<String>) -> Self {
        Self::Shared(Arc::new(CacheNamespace { tenant: tenant.into(), salt: salt.into() }))
    }
}

impl Default for Scope {
    fn default() -> Self {
        Self::Shared(Arc::default())
    }
}

/// Identifies the content of a cached block and of all blocks before it. Never reused, so that the
/// successor of an evicted block is not found after another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PrefixId(u64);

impl PrefixId {
    /// `number` must be unique.
    pub(super) fn new(number: u64) -> Self {
        Self(number)
    }
}

/// Key of a full block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct BlockKey {
    pub(super) parent: Parent,
    pub(super) tokens: [u32; KV_BLOCK],
}

/// What precedes a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// Nothing: the block is the first of a sequence in this scope.
    Root(Scope),
    /// A cached block and its own prefix.
    Block(PrefixId),
}
