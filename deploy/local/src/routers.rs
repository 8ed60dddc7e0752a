//! All routers that the address of `--endpoint` stands for.

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use futures::future::join_all;
use stoker_proto::v1::{
    ListRequestsRequest, ListRequestsResponse, ListWorkersRequest, ListWorkersResponse,
};
use stoker_shared::client::{Address, Credentials};
use tokio::{net::lookup_host, time::timeout};
use tonic::{Code, Status};

use crate::{
    admin::{HINT, Operator},
    error::Error,
};

/// Time limit of a call, which needs no work of the router.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The routers, at least one of which was reached.
pub struct Routers {
    reached: Vec<Operator>,
    unreachable: Vec<Unreachable>,
}

/// A router that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    address: Address,
    why: String,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "router {}: {}", self.address, self.why)
    }
}

/// What a router returned.
pub type Returned<T> = Vec<(Address, Result<T, Unreachable>)>;

impl Routers {
    /// Connects to the addresses that the name in `endpoint`, which is required, has in DNS.
    pub async fn connect(
        endpoint: Option<Address>,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let missing = || Error::Usage(format!("--endpoint is missing: {HINT}"));
        let endpoint = endpoint.ok_or_else(missing)?;
        // The certificate has the name, not the addresses that it stands for.
        let mut credentials = credentials.clone();
        credentials.tls.tls_server_name.get_or_insert_with(|| endpoint.host().to_owned());
        let found = timeout(TIMEOUT, lookup_host(endpoint.authority().to_owned())).await;
        let found = found.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let found = found.map_err(|error| {
            Error::Failed(format!("--endpoint {endpoint}: the name was not found: {error}"))
        })?;
        let mut failed = None;
        for family in families(found) {
            let connects = family.iter().map(|address| async {
                let address = endpoint.with_authority(*address);
                let connected = Operator::connect(Some(address.clone()), &credentials).await;
                connected.map_err(|error| Unreachable { address, why: error.to_string() })
            });
            let mut routers = Self { reached: Vec::new(), unreachable: Vec::new() };
            for connected in join_all(connects).await {
                match connected {
                    Ok(operator) => routers.reached.push(operator),
                    Err(unreachable) => routers.unreachable.push(unreachable),
                }
            }
            if !routers.reached.is_empty() {
                return Ok(routers);
            }
            failed = failed.or(routers.unreachable.pop());
        }
        let why = failed.map_or_else(|| "the name has no address".into(), |failed| failed.why);
        Err(Error::Failed(why))
    }

    /// Returns the routers that could not be connected to.
    pub fn unreachable(&self) -> &[Unreachable] {
        &self.unreachable
    }

    /// Returns the running and recent requests of every router.
    pub async fn requests(&self, wanted: &ListRequestsRequest) -> Returned<ListRequestsResponse> {
        self.each(async |router| {
            let mut admin = router.admin.clone();
            admin.list_requests(wanted.clone()).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// Returns the workers as every router sees them.
    pub async fn workers(&self) -> Returned<ListWorkersResponse> {
        self.each(async |router| {
            let mut admin = router.admin.clone();
            admin.list_workers(ListWorkersRequest {}).await.map(tonic::Response::into_inner)
        })
        .await
    }

    async fn each<T>(&self, call: impl AsyncFn(&Operator) -> Result<T, Status>) -> Returned<T> {
        let calls = self.reached.iter().map(|router| async {
            let address = router.endpoint().clone();
            let why = match timeout(TIMEOUT, call(router)).await {
                Ok(Ok(returned)) => return (address, Ok(returned)),
                Ok(Err(status)) if status.code() == Code::Unimplemented => {
                    "is a worker, or a router of a version without this command: update it".into()
                }
                Ok(Err(status)) => router.error("a router", status).to_string(),
                Err(_) => format!("no response within {} s", TIMEOUT.as_secs()),
            };
            let unreachable = Unreachable { address: address.clone(), why };
            (address, Err(unreachable))
        });
        join_all(calls).await
    }
}

/// Divides addresses by family, that of the first one first: a process that has addresses of both
/// is one router.
fn families(found: impl Iterator<Item = SocketAddr>) -> Vec<BTreeSet<SocketAddr>> {
    let found: Vec<_> = found.collect();
    let first = found.first().is_some_and(SocketAddr::is_ipv4);
    let of = |v4| found.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
    [of(first), of(!first)].into_iter().filter(|family: &BTreeSet<_>| !family.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_of_two_families_are_alternatives() {
        let addresses = ["[::1]:1", "10.0.0.2:1", "10.0.0.1:1", "10.0.0.2:1"];
        let found = families(addresses.iter().map(|address| address.parse().unwrap()));
        let texts: Vec<Vec<_>> =
            found.iter().map(|family| family.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(texts, [vec!["[::1]:1"], vec!["10.0.0.1:1", "10.0.0.2:1"]]);
    }
}
