//! Whose `routing` a worker believes: it says who the tenant is, what another worker made, and what is suspected.

use clap::ValueEnum;
use stoker_shared::{ServiceError, serve::Peer};

/// Who may be a router.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum AcceptRouting {
    /// Who is on this machine
    #[default]
    Loopback,
    /// Everybody who reaches this worker
    Any,
    /// Nobody: clients call this worker directly
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
        let from = peer.map_or_else(|| "somebody".into(), |peer| peer.address().ip().to_string());
        Err(ServiceError::RoutingRefused(format!(
            "`routing` from {from} is not accepted here: start the worker with --accept-routing any, where only routers \
             reach it"
        )))
    }
}
