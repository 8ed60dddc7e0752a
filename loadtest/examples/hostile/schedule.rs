//! Runs the attacks in hostile windows, in a thread of their own.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    runtime,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    attack::{Attack, Context, Role},
    tally::Tally,
    timetable::Timetable,
};

/// Priority of the thread: attackers would not compute on the machine of the servers.
const NICENESS: i32 = 19;

/// An attack on one listener.
#[derive(Debug, Clone)]
pub struct Front {
    /// The attack.
    pub attack: Attack,
    /// The listener.
    pub role: Role,
    address: SocketAddr,
    /// Its counters.
    pub tally: Arc<Tally>,
    seed: u64,
}

/// Returns each attack on each listener that it is for.
pub fn fronts(attacks: &[Attack], listeners: &[(Role, SocketAddr)], seed: u64) -> Vec<Front> {
    let pairs = attacks.iter().flat_map(|attack| {
        let listeners = listeners.iter().filter(|(role, _)| attack.scope.contains(*role));
        listeners.map(move |(role, address)| (*attack, *role, *address))
    });
    let seeds = (seed << 16)..;
    pairs
        .zip(seeds)
        .map(|((attack, role, address), seed)| Front {
            attack,
            role,
            address,
            tally: Arc::default(),
            seed,
        })
        .collect()
}

/// Starts the thread, which ends with the last window or with this process.
pub fn start(fronts: Vec<Front>, timetable: Timetable, intensity: f64) -> std::io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("attacks".into()).spawn(move || {
        // Without permission, they compete with the servers.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        runtime.block_on(async {
            for window in (0..timetable.windows()).filter(|window| Timetable::is_hostile(*window)) {
                sleep_until(timetable.end_of(window) - timetable.window()).await;
                run(&fronts, timetable.end_of(window), window, intensity).await;
            }
        });
    })?;
    Ok(())
}

/// Runs all attacks until `end`, and closes what is open then.
async fn run(fronts: &[Front], end: Instant, window: usize, intensity: f64) {
    let mut attacks = JoinSet::new();
    for front in fronts {
        attacks.spawn(front.clone().run(window as u64, intensity));
    }
    sleep_until(end).await;
    attacks.shutdown().await;
}

impl Front {
    async fn run(self, window: u64, intensity: f64) {
        let mut rng = StdRng::seed_from_u64(self.seed << 16 | window);
        let period = Duration::from_secs_f64(1.0 / (self.attack.per_second * intensity));
        // Not all attacks start at once.
        let mut ticks = interval_at(Instant::now() + period.mul_f64(rng.random()), period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let permits = Arc::new(Semaphore::new(self.attack.concurrency));
        let mut attempts = JoinSet::new();
        loop {
            ticks.tick().await;
            while attempts.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
            let tally = Arc::clone(&self.tally);
            let rng = StdRng::seed_from_u64(rng.random());
            let context = Context { role: self.role, address: self.address, rng, tally };
            let (attempt, tally) = ((self.attack.attempt)(context), Arc::clone(&self.tally));
            attempts.spawn(async move {
                tally.start();
                tally.ended(attempt.await.to_string());
                drop(permit);
            });
        }
    }
}
