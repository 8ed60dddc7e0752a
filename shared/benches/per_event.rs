//! What a response stream costs per event: bare, with a guard, behind a drain gate, and observed.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use futures::{StreamExt, stream, stream::BoxStream};
use stoker_proto::v1::{GenerateResponse, TokenDelta, generate_response::Event};
use stoker_shared::{
    ServiceError,
    drain::DrainGate,
    guarded::Guarded,
    observed::{Observe, Observed},
};
use tokio::runtime::{Builder, Runtime};

const EVENTS: usize = 1_000;

type Item = Result<GenerateResponse, ServiceError>;

/// A response of tokens, boxed like those of both processes.
fn response() -> BoxStream<'static, Item> {
    let token = Event::Token(TokenDelta { ids: vec![7], text: "x".into(), ..Default::default() });
    let event = GenerateResponse { event: Some(token), ..Default::default() };
    stream::iter((0..EVENTS).map(move |_| Ok(event.clone()))).boxed()
}

fn read(runtime: &Runtime, stream: BoxStream<'static, Item>) {
    runtime.block_on(stream.for_each(|item| {
        black_box(&item);
        std::future::ready(())
    }));
}

/// Counts events.
struct Count(u64);

impl Observe for Count {
    fn event(&mut self, _: &mut GenerateResponse) {
        self.0 += 1;
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("response of 1000 events");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let gate = DrainGate::default();
    let runtime = Builder::new_current_thread().build().unwrap();
    group.bench_function("bare", |b| b.iter(|| read(&runtime, response())));
    group.bench_function("guarded", |b| {
        b.iter(|| read(&runtime, Guarded::new(response(), ()).boxed()))
    });
    group.bench_function("behind a drain gate", |b| {
        b.iter(|| {
            let (guard, cut) = gate.enter().unwrap();
            let last = || Err(ServiceError::Draining("w".into()));
            read(&runtime, Guarded::new(cut.end(response(), last), guard).boxed());
        });
    });
    group.bench_function("observed", |b| {
        b.iter(|| read(&runtime, Observed::new(response(), Count(0)).boxed()));
    });
    group.finish();
    criterion.final_summary();
}
