//! Whose `routing` a worker accepts: it names the tenant, what another worker generated, and suspects of a panic.

use clap::ValueEnum;
use stoker_shared::{ServiceError, serve::Peer};

/// The peers that may be routers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum AcceptRouting {
    /// Peers on this machine
    #[default]
    Loopback,
    /// Every peer
    Any,
    /// No peer: clients call this worker directly
    None,
}

impl AcceptRouting {
    /// Whether a request from `peer` may have `routing`.
    pub(crate) fn check(self, peer: Option<&Peer>) -> Result<(), ServiceError> {
        let accepted = match self {
            Self::Loopback => peer.is_some_and(Peer::is_loopback),
            Self::Any => true,
            Self::None => false,
        };
        if accepted {
            return Ok(());
        }
        let from =
            peer.map_or_else(|| "an unknown peer".into(), |peer| peer.address().ip().to_string());
        Err(ServiceError::RoutingRefused(format!(
            "`routing` from {from} is not accepted here: start the worker with --accept-routing any, where only routers \
             reach it"
        )))
    }
}
