//! What a block holds, named exactly: by its tokens and all that comes before them, and not by a hash, which others
//! could have too.

use std::sync::Arc;

use stoker_ops::KV_BLOCK;

/// Who shares blocks: what is computed in one scope is never found in another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Requests of a tenant that have the same salt.
    Shared(Arc<Sharers>),
    /// One request, by its number in the engine.
    Request(u64),
}

/// A tenant, and a salt of its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Sharers {
    tenant: String,
    salt: String,
}

impl Scope {
    /// All requests of `tenant` with this `salt`.
    pub fn shared(tenant: impl Into<String>, salt: impl Into<String>) -> Self {
        Self::Shared(Arc::new(Sharers { tenant: tenant.into(), salt: salt.into() }))
    }
}

impl Default for Scope {
    fn default() -> Self {
        Self::Shared(Arc::default())
    }
}

/// Names what a block and all before it hold. Never given twice, so that what comes after a block that is forgotten
/// is not found after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentId(u64);

impl ContentId {
    /// From a number that no other has.
    pub(super) fn new(number: u64) -> Self {
        Self(number)
    }
}

/// What a block holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Content {
    pub(super) after: After,
    pub(super) tokens: [u32; KV_BLOCK],
}

/// What comes before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum After {
    /// Nothing: it begins a sequence of this scope.
    Nothing(Scope),
    /// A block, and all before that.
    Block(ContentId),
}
