//! The flags of API keys.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use stoker_shared::{
    config,
    memory::MemoryBudget,
    reload::{self, Reloaded, Reloads},
};

use super::{
    ApiKeys,
    key_file::{KeyFile, KeyFileError},
};
use crate::metrics::Metrics;

/// Who may call the router.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct TenantArgs {
    /// TOML file of tenants and their API keys, which `stoker keys` makes: calls then need
    /// `authorization: Bearer KEY`. It is read again when it changes. Other users must not be able
    /// to read it
    #[arg(long, env = "STOKER_API_KEYS", value_name = "FILE", help_heading = "Tenants")]
    pub api_keys: Option<PathBuf>,

    /// Listen on an address that other hosts reach without API keys or client certificates: where a
    /// gateway authenticates clients, or the network is trusted
    #[arg(long, env = "STOKER_ALLOW_ANONYMOUS", help_heading = "Tenants")]
    pub allow_anonymous: bool,

    /// Number of routers that share the load: the rates and streams of a tenant in --api-keys are
    /// divided by it
    #[arg(
        long,
        env = "STOKER_ROUTER_REPLICAS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        value_name = "COUNT",
        help_heading = "Tenants"
    )]
    pub router_replicas: u32,

    /// Memory for the requests of one tenant of --api-keys. Beyond it, they are rejected with
    /// RESOURCE_EXHAUSTED [default: half of --max-request-memory]
    #[arg(
        long,
        env = "STOKER_TENANT_MAX_REQUEST_MEMORY",
        value_name = "SIZE",
        help_heading = "Tenants"
    )]
    pub tenant_max_request_memory: Option<ByteSize>,

    /// The content of `api_keys`, read by [`TenantArgs::load`].
    #[arg(skip)]
    pub(crate) keys: Option<Reloaded<KeyFile>>,
}

impl Default for TenantArgs {
    fn default() -> Self {
        config::defaults()
    }
}

impl TenantArgs {
    /// Reads the file of keys, and again when it changes. Must be called within a tokio runtime,
    /// before a router is started.
    pub fn load(&mut self, reloads: &Reloads) -> Result<(), KeyFileError> {
        let Some(path) = self.api_keys.clone() else { return Ok(()) };
        let load = move || -> Result<KeyFile, KeyFileError> {
            let wrong = |why: String| KeyFileError { path: path.clone(), why };
            let content = reload::read_secret(&path).map_err(wrong)?;
            let content = String::from_utf8(content).map_err(|_| wrong("is not UTF-8".into()))?;
            let file = KeyFile::parse(&content).map_err(wrong)?;
            if file.is_empty() {
                tracing::warn!(path = %path.display(), "no API keys: every call is refused");
            }
            Ok(file)
        };
        let files = self.api_keys.iter().cloned().collect();
        self.keys = Some(reloads.follow("api_keys", files, load)?);
        Ok(())
    }

    /// Whether clients need neither a key nor a certificate on any address.
    pub fn allows_anonymous(&self) -> bool {
        self.allow_anonymous || self.keys.is_some()
    }

    /// Returns the keys, if calls need one.
    pub(crate) fn keys(&self, memory: &MemoryBudget, metrics: &Metrics) -> Option<ApiKeys> {
        let file = self.keys.clone()?;
        let share = self.tenant_max_request_memory.map_or(memory.limit() / 2, |size| size.as_u64());
        Some(ApiKeys::new(file, self.router_replicas, memory, share, metrics))
    }
}
