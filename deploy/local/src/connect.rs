//! The cluster of a command: a running one, or one of its own.

use stoker_router::RouterConfig;
use stoker_shared::client::Address;
use stoker_worker::WorkerConfig;

use crate::{cli::TargetArgs, cluster::Cluster, error::Error};

/// Returns the address of the cluster at `endpoint`, or of one that is started now. That one stops
/// when it is dropped.
pub async fn cluster(target: &TargetArgs) -> Result<(Option<Cluster>, Address), Error> {
    if let Some(address) = &target.endpoint {
        return Ok((None, address.clone()));
    }
    let listen = ([127, 0, 0, 1], 0).into();
    let config = WorkerConfig { compute: target.compute.clone(), ..WorkerConfig::default() };
    let (model, workers) = (target.cluster.model.clone(), target.cluster.num_workers);
    let cluster = Cluster::start(listen, model, workers, config, RouterConfig::default()).await?;
    let address = Address::from(cluster.address());
    Ok((Some(cluster), address))
}
