//! `stoker drain`: a process, or a worker for one router, takes no new requests.

use std::io::{self, Write};

use stoker_proto::{
    duration::to_wire,
    v1::{DrainRequest, DrainWorkerRequest},
};

use crate::{admin::Operator, cli::DrainArgs, error::Error};

/// Runs the command.
pub async fn run(args: DrainArgs) -> Result<(), Error> {
    if args.worker.as_ref().is_some_and(String::is_empty) {
        let why = "WORKER is empty: give the id of a worker, or nothing to drain the process at \
                   --endpoint";
        return Err(Error::Usage(why.into()));
    }
    let mut operator = Operator::connect(args.endpoint, &args.credentials).await?;
    let endpoint = operator.endpoint().clone();
    let timeout = args.timeout.and_then(to_wire);
    let (unfinished, done) = match args.worker {
        None => {
            let drained = operator.admin.drain(DrainRequest { timeout }).await;
            let drained = drained.map_err(|status| operator.error("a process", status))?;
            let done = format!("{endpoint} takes no new requests until it is restarted");
            (drained.into_inner().unfinished, done)
        }
        Some(worker) => {
            let done = format!("worker {worker} gets no new requests of the router at {endpoint}");
            let drained = operator.admin.drain_worker(DrainWorkerRequest { worker, timeout }).await;
            let drained = drained.map_err(|status| operator.error("a router", status))?;
            (drained.into_inner().unfinished, done)
        }
    };
    match (unfinished, args.timeout) {
        (1.., Some(timeout)) => Err(Error::Failed(format!(
            "{done}; {unfinished} were still running after {timeout:?} (--timeout) and continue"
        ))),
        _ => {
            let printed = writeln!(io::stdout(), "{done}; none is running");
            printed.map_err(|error| Error::Failed(format!("standard output: {error}")))
        }
    }
}
