//! The peers whose `routing` a worker accepts. It carries the tenant, the tokens of another worker
//! and whether a request is suspected of a panic.

use clap::ValueEnum;
use stoker_shared::{ServiceError, serve::Peer};

/// The peers whose `routing` is accepted.
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
    /// Returns an error unless a request from `peer` may have `routing`.
    pub(crate) fn check(self, peer: Option<&Peer>) -> Result<(), ServiceError> {
        let accepted = match self {
            Self::Loopback => peer.is_some_and(Peer::is_loopback),
            Self::Any => true,
            Self::None => false,
        };
        if accepted {
            return Ok(());
        }
        let peer =
            peer.map_or_else(|| "an unknown peer".into(), |peer| peer.address().ip().to_string());
        Err(ServiceError::RoutingRefused(format!(
            "`routing` from {peer} is not accepted by this worker: if only routers reach it, start \
             it with --accept-routing any"
        )))
    }
}
