//! Tells routers where this worker is, through etcd.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use stoker_shared::{
    discovery::{
        Address, WorkerId,
        etcd::{self, EtcdConfig, Record, Registration},
    },
    duration,
};

use crate::RunningWorker;

/// How routers find this worker.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct AnnounceConfig {
    /// The etcd to announce it in, if any.
    #[command(flatten)]
    pub etcd: EtcdConfig,

    /// How long etcd remembers this worker after its last sign of life, in whole seconds
    #[arg(
        long,
        env = "STOKER_ETCD_LEASE_TTL",
        default_value = "10s",
        value_parser = lease_ttl,
        value_name = "TIME",
        help_heading = "Discovery"
    )]
    pub etcd_lease_ttl: Duration,

    /// Where routers reach this worker, as host:port [default: the address of --listen]
    #[arg(long, env = "STOKER_ADVERTISE", value_name = "ADDR", help_heading = "Discovery")]
    pub advertise: Option<Address>,
}

/// What would be announced cannot be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The worker listens on every address.
    #[error(
        "--listen {0} means every address of this machine, and with --etcd routers need one that they \
         can dial: add --advertise host:port"
    )]
    Listen(SocketAddr),
    /// It is told to announce every address.
    #[error("--advertise {0} means every address of a machine: name one that routers can dial")]
    Advertise(Address),
}

impl AnnounceConfig {
    /// Where others reach a worker that listens on `bound`.
    pub fn address(&self, bound: SocketAddr) -> Result<Address, AddressError> {
        match &self.advertise {
            Some(address) if address.is_unspecified() => {
                Err(AddressError::Advertise(address.clone()))
            }
            Some(address) => Ok(address.clone()),
            None if self.etcd.is_given() && bound.ip().is_unspecified() => {
                Err(AddressError::Listen(bound))
            }
            None => Ok(bound.into()),
        }
    }

    /// Announces `worker` at `address`, until it drains, if there is an etcd to do so.
    pub fn announce(&self, address: Address, worker: &RunningWorker) -> Announcement {
        let announced = self.etcd.is_given().then(|| {
            let record = Record::new(address, worker.info());
            let (id, end) = (WorkerId::new(worker.id()), worker.draining());
            etcd::register(self.etcd.clone(), self.etcd_lease_ttl, &id, &record, end)
        });
        Announcement(announced)
    }
}

/// Keeps a worker announced.
#[derive(Debug)]
pub struct Announcement(Option<Registration>);

impl Announcement {
    /// Takes it back, within 2 s.
    pub async fn withdraw(self) {
        if let Some(registration) = self.0 {
            registration.withdraw().await;
        }
    }
}

/// etcd counts whole seconds, and knows nothing shorter.
fn lease_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    match ttl.as_secs() {
        1..=3_600 if ttl.subsec_nanos() == 0 => Ok(ttl),
        _ => Err("etcd counts whole seconds: give 1s to 1h".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        announce: AnnounceConfig,
    }

    fn parse(arguments: &[&str]) -> Result<AnnounceConfig, String> {
        let arguments = [&["worker"], arguments].concat();
        Cli::try_parse_from(arguments).map(|cli| cli.announce).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_announced_can_be_dialled() {
        let etcd = ["--etcd", "http://127.0.0.1:2379"];
        let address = |arguments: &[&str], bound: &str| {
            let config = parse(arguments).unwrap();
            let address = config.address(bound.parse().unwrap());
            address.map(|address| address.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(address(&etcd, "127.0.0.1:7").unwrap(), "127.0.0.1:7");
        assert_eq!(address(&[], "0.0.0.0:7").unwrap(), "0.0.0.0:7");
        let named = [&etcd[..], &["--advertise", "worker-0:8"]].concat();
        assert_eq!(address(&named, "0.0.0.0:7").unwrap(), "worker-0:8");

        for bound in ["0.0.0.0:7", "[::]:7"] {
            let error = address(&etcd, bound).unwrap_err();
            assert!(error.contains(bound) && error.contains("--advertise"), "{error}");
        }
        let error = address(&["--advertise", "0.0.0.0:8"], "127.0.0.1:7").unwrap_err();
        assert!(error.contains("--advertise 0.0.0.0:8"), "{error}");
    }

    #[test]
    fn a_lease_has_whole_seconds() {
        assert_eq!(parse(&[]).unwrap().etcd_lease_ttl, Duration::from_secs(10));
        let given = parse(&["--etcd-lease-ttl", "2m"]).unwrap();
        assert_eq!(given.etcd_lease_ttl, Duration::from_secs(120));
        for bad in ["0s", "1500ms", "2h", "10"] {
            let error = parse(&["--etcd-lease-ttl", bad]).unwrap_err();
            assert!(error.contains("--etcd-lease-ttl") && error.contains(bad), "{error}");
        }
    }
}
