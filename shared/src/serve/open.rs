//! Opens a listener of a program: binds it, adds TLS, and refuses an address that is exposed.

use super::{ListenAddress, Listener, bind_for};
use crate::{cli::ServerError, tls::ServerTls};

/// Binds the `address` of `flag`, and refuses one that other hosts reach without TLS, unless that is
/// allowed.
pub async fn open(
    flag: &'static str,
    address: impl Into<ListenAddress>,
    tls: Option<ServerTls>,
    allow_plaintext: bool,
) -> Result<Listener, ServerError> {
    let bound = bind_for(flag, address).await.map_err(ServerError::usage)?;
    let listener = bound.with_tls(tls);
    listener.check_plaintext(flag, allow_plaintext)?;
    Ok(listener)
}
