//! `stoker top`: a cluster while it works, as its routers see it. A screen on a terminal, a line per
//! interval in a pipe.

mod cluster_view;
mod lines;
mod screen;
mod state;
mod ui;

use std::{
    env,
    io::{self, IsTerminal},
};

use stoker_proto::v1::ListRequestsRequest;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{cli::TopArgs, error::Error, routers::Routers};
use cluster_view::{ClusterView, Sample};

/// Number of requests of a router in which slow ones are searched: the maximum of a list.
const SEARCHED_REQUESTS: u32 = 256;

/// Runs the command.
pub async fn run(args: TopArgs) -> Result<(), Error> {
    let routers = Routers::connect(args.endpoint, &args.credentials).await?;
    let mut source = Source { routers, last: None };
    // A first error is shown before the screen is changed.
    let first = source.next().await?;
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    if args.plain || is_dumb || !io::stdout().is_terminal() {
        lines::run(source, first, ticks, args.count).await
    } else {
        screen::run(source, first, ticks, args.count).await
    }
}

/// Takes samples of the routers.
struct Source {
    routers: Routers,
    last: Option<Sample>,
}

impl Source {
    /// Returns the cluster now. Rates are those since the last call. Fails if no router responds.
    async fn next(&mut self) -> Result<ClusterView, Error> {
        let wanted = ListRequestsRequest { limit: SEARCHED_REQUESTS, ..Default::default() };
        let (workers, requests) =
            tokio::join!(self.routers.workers(), self.routers.requests(&wanted));
        let sample = Sample { at: Instant::now(), workers, requests };
        let view = ClusterView::new(&sample, self.last.as_ref(), self.routers.unreachable());
        if view.routers == 0
            && let Some(why) = view.warnings.first()
        {
            return Err(Error::Failed(why.clone()));
        }
        self.last = Some(sample);
        Ok(view)
    }
}
