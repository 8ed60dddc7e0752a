//! Delays for calls without a valid key. Trying all keys is hopeless, but should not keep the router
//! busy either. Calls with a valid key are never delayed, from whatever address they come.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

/// Delay of the first failing call of an address. Each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Time without a failing call after which an address is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// Maximum number of addresses that are remembered.
const MAX_ADDRESSES: usize = 4_096;
/// Maximum number of calls that are delayed at a time; further ones fail at once.
const MAX_DELAYED: usize = 1_024;

/// Failing calls by address.
#[derive(Debug)]
pub(super) struct Failures {
    addresses: Mutex<HashMap<IpAddr, (u32, Instant)>>,
    delayed: Arc<Semaphore>,
}

impl Default for Failures {
    fn default() -> Self {
        Self { addresses: Mutex::default(), delayed: Arc::new(Semaphore::new(MAX_DELAYED)) }
    }
}

impl Failures {
    /// Records a failing call from `address`, and waits.
    pub(super) async fn delay(&self, address: IpAddr) {
        let delay = self.record(network(address));
        let Ok(_permit) = self.delayed.try_acquire() else { return };
        tokio::time::sleep(delay).await;
    }

    fn record(&self, address: IpAddr) -> Duration {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&address) {
            addresses.retain(|_, (_, at)| now.duration_since(*at) < FORGET);
            if addresses.len() >= MAX_ADDRESSES {
                return MAX_DELAY;
            }
        }
        let (failures, at) = addresses.entry(address).or_insert((0, now));
        if now.duration_since(*at) >= FORGET {
            *failures = 0;
        }
        let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(16)).min(MAX_DELAY);
        (*failures, *at) = (failures.saturating_add(1), now);
        delay
    }
}

/// Returns the network that one client has: an IPv6 client has 64 bits of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_a_limit_and_are_forgotten() {
        let failures = Failures::default();
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let delays: Vec<_> = (0..8).map(|_| failures.record(one).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(failures.record(two), FIRST_DELAY, "each address has its own");
        tokio::time::advance(FORGET).await;
        assert_eq!(failures.record(one), FIRST_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_take_bounded_memory() {
        let failures = Failures::default();
        for i in 0..2 * MAX_ADDRESSES as u32 {
            failures.record(IpAddr::from(i.to_be_bytes()));
        }
        assert_eq!(failures.addresses.lock().map(|all| all.len()).ok(), Some(MAX_ADDRESSES));
        assert_eq!(failures.record([255, 0, 0, 1].into()), MAX_DELAY, "one that is not remembered");
        tokio::time::advance(FORGET).await;
        assert_eq!(failures.record([255, 0, 0, 1].into()), FIRST_DELAY);
    }

    #[test]
    fn an_ipv6_client_has_a_network() {
        let address = |last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 2, 3, 4, last));
        assert_eq!(network(address(5)), network(address(6)));
        let mapped = IpAddr::V6("::ffff:10.0.0.1".parse().unwrap_or(Ipv6Addr::LOCALHOST));
        assert_eq!(network(mapped), IpAddr::from([10, 0, 0, 1]));
    }
}
