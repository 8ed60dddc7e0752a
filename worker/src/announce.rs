//! Registers this worker in etcd, where routers discover it.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use stoker_shared::{
    discovery::{
        Address, WorkerId,
        etcd::{self, EtcdConfig, Registration, WorkerRecord},
    },
    duration, host,
};

use crate::RunningWorker;

/// How routers discover this worker.
#[derive(Debug, Clone, Args)]
pub struct AnnounceConfig {
    /// The etcd cluster to register in, if any.
    #[command(flatten)]
    pub etcd: EtcdConfig,

    /// Time after which etcd removes this worker if it stops renewing its lease, in whole seconds
    #[arg(
        long,
        env = "STOKER_ETCD_LEASE_TTL",
        default_value = "10s",
        value_parser = lease_ttl,
        value_name = "TIME",
        help_heading = "Discovery"
    )]
    pub etcd_lease_ttl: Duration,

    /// Address at which routers reach this worker, as host:port [default: the address of --listen;
    /// if that is every interface, the address in POD_IP, or else the one from which this host
    /// reaches others]
    #[arg(long, env = "STOKER_ADVERTISE", value_name = "ADDR", help_heading = "Discovery")]
    pub advertise: Option<Address>,
}

/// Variable with the address of a pod, which Kubernetes sets from `status.podIP`.
const POD_IP: &str = "POD_IP";

/// An address that routers could not dial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The worker listens on every interface, and the machine has only a loopback interface.
    #[error(
        "--listen {0} is every interface of this machine, which has no address that another one \
         could dial; with --etcd routers need one: add --advertise host:port"
    )]
    Listen(SocketAddr),
    /// The variable has no address that the worker listens on.
    #[error(
        "POD_IP {value:?} is not an address that --listen {listen} accepts calls at; set it from \
         status.podIP, or add --advertise host:port"
    )]
    PodIp {
        /// Value of the variable.
        value: String,
        /// The address that the worker listens on.
        listen: SocketAddr,
    },
    /// The advertised address is unspecified.
    #[error("--advertise {0} is every address of a machine: give one that routers can dial")]
    Advertise(Address),
}

impl AnnounceConfig {
    /// Returns the advertised address of a worker that listens on `bound`.
    pub fn address(&self, bound: SocketAddr) -> Result<Address, AddressError> {
        let pod_ip = env::var(POD_IP).ok().filter(|value| !value.is_empty());
        match &self.advertise {
            Some(address) if address.is_unspecified() => {
                Err(AddressError::Advertise(address.clone()))
            }
            Some(address) => Ok(address.clone()),
            None if bound.ip().is_unspecified() => {
                match dialable(bound, pod_ip, host::outward_address) {
                    Ok(ip) => Ok(SocketAddr::new(ip, bound.port()).into()),
                    Err(error) if self.etcd.is_given() => Err(error),
                    // Nothing announces it.
                    Err(_) => Ok(bound.into()),
                }
            }
            None => Ok(bound.into()),
        }
    }

    /// Registers `worker` at `address` until it drains. Does nothing without `--etcd`.
    pub fn announce(&self, address: Address, worker: &RunningWorker) -> Announcement {
        let registration = self.etcd.is_given().then(|| {
            let record = WorkerRecord::new(address, worker.info());
            let (id, end) = (WorkerId::new(worker.id()), worker.draining());
            etcd::register(self.etcd.clone(), self.etcd_lease_ttl, &id, &record, end)
        });
        Announcement(registration)
    }
}

/// The registration of a worker in etcd, if it has one.
#[derive(Debug)]
pub struct Announcement(Option<Registration>);

impl Announcement {
    /// Removes the registration, within 2 s.
    pub async fn withdraw(self) {
        if let Some(registration) = self.0 {
            registration.withdraw().await;
        }
    }
}

/// Returns the address at which other hosts reach a worker that listens on every interface, as
/// `bound` is: that of its pod, or of its host.
fn dialable(
    bound: SocketAddr,
    pod_ip: Option<String>,
    outward_address: impl FnOnce(bool) -> Option<IpAddr>,
) -> Result<IpAddr, AddressError> {
    let Some(value) = pod_ip else {
        return outward_address(bound.is_ipv4()).ok_or(AddressError::Listen(bound));
    };
    match value.parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() && (ip.is_ipv4() || bound.is_ipv6()) => Ok(ip),
        _ => Err(AddressError::PodIp { value, listen: bound }),
    }
}

/// Parses a lease TTL, which etcd takes in whole seconds.
fn lease_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    match ttl.as_secs() {
        1..=3_600 if ttl.subsec_nanos() == 0 => Ok(ttl),
        _ => Err("etcd leases last whole seconds: give 1s to 1h".into()),
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
    fn the_advertised_address_can_be_dialled() {
        let etcd = ["--etcd", "http://127.0.0.1:2379"];
        let address = |arguments: &[&str], bound: &str| {
            let config = parse(arguments).unwrap();
            let address = config.address(bound.parse().unwrap());
            address.map(|address| address.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(address(&etcd, "127.0.0.1:7").unwrap(), "127.0.0.1:7");
        let advertised = [&etcd[..], &["--advertise", "worker-0:8"]].concat();
        assert_eq!(address(&advertised, "0.0.0.0:7").unwrap(), "worker-0:8");

        let error = address(&["--advertise", "0.0.0.0:8"], "127.0.0.1:7").unwrap_err();
        assert!(error.contains("--advertise 0.0.0.0:8"), "{error}");
    }

    #[test]
    fn a_worker_on_every_interface_is_reached_at_its_pod_or_its_host() {
        let address = |bound: &str, pod_ip: Option<&str>, outward: Option<&str>| {
            let outward = |only_ipv4: bool| {
                let outward: Option<IpAddr> = outward.map(|text| text.parse().unwrap());
                outward.filter(|ip| ip.is_ipv4() || !only_ipv4)
            };
            let ip = dialable(bound.parse().unwrap(), pod_ip.map(str::to_owned), outward);
            ip.map(|ip| ip.to_string()).map_err(|error| error.to_string())
        };
        for bound in ["0.0.0.0:7", "[::]:7"] {
            assert_eq!(address(bound, Some("10.1.2.3"), Some("10.0.0.7")).unwrap(), "10.1.2.3");
            assert_eq!(address(bound, None, Some("10.0.0.7")).unwrap(), "10.0.0.7");
            let error = address(bound, None, None).unwrap_err();
            assert!(error.contains(bound) && error.contains("add --advertise"), "{error}");
            for wrong in ["worker-0", "10.1.2.3:7", "::"] {
                let error = address(bound, Some(wrong), Some("10.0.0.7")).unwrap_err();
                let names_both = error.contains(&format!("POD_IP {wrong:?}"));
                assert!(names_both && error.contains("--advertise"), "{error}");
            }
        }
        assert_eq!(address("[::]:7", Some("fd00::1"), None).unwrap(), "fd00::1");
        assert!(address("0.0.0.0:7", Some("fd00::1"), None).is_err(), "it accepts IPv4 only");
        assert!(address("0.0.0.0:7", None, Some("fd00::1")).is_err());
    }

    #[test]
    fn a_lease_ttl_is_in_whole_seconds() {
        assert_eq!(parse(&[]).unwrap().etcd_lease_ttl, Duration::from_secs(10));
        let config = parse(&["--etcd-lease-ttl", "2m"]).unwrap();
        assert_eq!(config.etcd_lease_ttl, Duration::from_secs(120));
        for invalid in ["0s", "1500ms", "2h", "10"] {
            let error = parse(&["--etcd-lease-ttl", invalid]).unwrap_err();
            assert!(error.contains("--etcd-lease-ttl") && error.contains(invalid), "{error}");
        }
    }
}
