//! The polite client: requests at fixed times, whose latencies count from them.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use stoker_loadtest::targets::{
    Api, Target,
    outcome::{CallEnd, CallOutcome, LiveCounters},
    request::LoadRequest,
};
use stoker_shared::client::{Address, Credentials};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{measure::Measure, timetable::Timetable};

/// Time limit of a request, after which it counts as failed.
const DEADLINE: Duration = Duration::from_secs(10);
/// New connections are as many times rarer than requests.
const NEW_CONNECTIONS: f64 = 0.25;

/// A way in which the polite client makes its requests.
#[derive(Debug, Clone)]
pub struct Polite {
    /// Name of the way.
    pub name: &'static str,
    api: Api,
    address: Address,
    /// The connection, unless each request has one of its own.
    connected: Option<Target>,
    rate: f64,
    tokens: u32,
}

impl Polite {
    /// Connects in all ways to a router: gRPC, HTTP, and gRPC with a new connection for each request.
    pub async fn connect(
        router: Address,
        http: Option<Address>,
        rate: f64,
        tokens: u32,
    ) -> Result<Vec<Self>, String> {
        let of = |name, api, address: &Address, rate| {
            let address = address.clone();
            Self { name, api, address, connected: None, rate, tokens }
        };
        let mut grpc = of("gRPC", Api::Stoker, &router, rate);
        grpc.connected = Some(grpc.target().await?);
        let mut all = vec![grpc];
        if let Some(http) = &http {
            let mut http = of("HTTP", Api::OpenAi, http, rate);
            http.connected = Some(http.target().await?);
            all.push(http);
        }
        all.push(of("new connections", Api::Stoker, &router, rate * NEW_CONNECTIONS));
        Ok(all)
    }

    async fn target(&self) -> Result<Target, String> {
        if let Some(target) = &self.connected {
            return Ok(target.clone());
        }
        let none = Credentials::default();
        let connect = Target::connect(self.api, &self.address, "", NonZeroUsize::MIN, &none);
        match timeout(DEADLINE, connect).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not connected within {DEADLINE:?}")),
        }
    }

    /// Makes a request that was planned for `planned`. An error is a text.
    pub async fn request(&self, planned: Instant, index: u64) -> Result<CallOutcome, String> {
        let target = self.target().await?;
        let request = LoadRequest {
            index,
            model: target.model().to_owned(),
            prompt: "Once upon a time".into(),
            max_tokens: Some(self.tokens),
            ignore_eos: true,
            seed: index,
            ..LoadRequest::default()
        };
        let live = LiveCounters::default();
        let outcome = target.call(&request, planned, Some(DEADLINE), &live).await;
        match outcome.end {
            CallEnd::Complete(_) => Ok(outcome),
            CallEnd::Failed(failure) => Err(format!("{}: {}", failure.code, failure.message)),
            CallEnd::Cancelled => Err("cancelled".into()),
        }
    }

    /// Makes requests at the fixed rate until the last window ends, and records each as number `way`.
    pub async fn run(self, way: usize, timetable: Timetable, measure: Arc<Measure>) {
        let polite = Arc::new(self);
        let mut running = JoinSet::new();
        for index in 0.. {
            let planned = timetable.start() + Duration::from_secs_f64(index as f64 / polite.rate);
            let Some(slot) = timetable.slot(planned) else { break };
            sleep_until(planned).await;
            while running.try_join_next().is_some() {}
            let (polite, measure) = (Arc::clone(&polite), Arc::clone(&measure));
            running.spawn(async move {
                let outcome = polite.request(planned, index).await;
                measure.record(way, slot, planned, outcome);
            });
        }
        while running.join_next().await.is_some() {}
    }
}
