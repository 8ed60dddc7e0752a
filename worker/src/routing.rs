//! The peers whose `routing` a worker accepts. It carries the tenant, the tokens of another worker
//! and whether a request is suspected of a panic.

use clap::ValueEnum;
use stoker_shared::{ServiceError, serve::Peer, tls::IdentityPattern};

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
    /// Returns an error unless a request from `peer` may have `routing`. A verified certificate
    /// counts before an address, and has to match one of `routers`, unless that is empty.
    pub(crate) fn check(
        self,
        peer: Option<&Peer>,
        routers: &[IdentityPattern],
    ) -> Result<(), ServiceError> {
        let identity = peer.and_then(Peer::identity);
        let accepted = match (self, identity) {
            (Self::None, _) => false,
            (_, Some(identity)) => identity.matches(routers),
            (_, None) if !routers.is_empty() => false,
            (Self::Loopback, None) => peer.is_some_and(Peer::is_loopback),
            (Self::Any, None) => true,
        };
        if accepted {
            return Ok(());
        }
        if let Some(identity) = identity.filter(|_| self != Self::None) {
            return Err(ServiceError::RoutingRefused(format!(
                "`routing` from {identity} is not accepted by this worker: --router-identity names \
                 others"
            )));
        }
        let peer =
            peer.map_or_else(|| "an unknown peer".into(), |peer| peer.address().ip().to_string());
        Err(ServiceError::RoutingRefused(format!(
            "`routing` from {peer} is not accepted by this worker: give routers a certificate that \
             its --tls-client-ca verifies, or start it with --accept-routing any if only routers \
             reach it"
        )))
    }
}
