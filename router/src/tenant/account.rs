//! Tenants by their API keys, and what each of them uses.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, header::AUTHORIZATION};
use stoker_shared::{ServiceError, memory::MemoryBudget, reload::Reloaded};

use super::{KeyFile, KeyHash, TenantPolicy, failures::Failures, key_file::Tenant, rate::Bucket};
use crate::metrics::Metrics;

/// Delay before a retry at the limit of streams.
const RETRY_STREAMS: Duration = Duration::from_secs(1);
/// Number of tenants without a key that are kept, for the case that they get one again.
const MAX_FORMER: usize = 1_000;

/// The keys of all tenants. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct ApiKeys(Arc<Keys>);

#[derive(Debug)]
struct Keys {
    file: Reloaded<KeyFile>,
    replicas: u32,
    /// Budget of all requests, and the limit of a tenant's share in bytes.
    memory: (MemoryBudget, u64),
    usage: Mutex<HashMap<Arc<str>, Arc<TenantUsage>>>,
    failures: Failures,
    metrics: Metrics,
}

/// What a tenant uses. It outlives changes of the file.
#[derive(Debug)]
struct TenantUsage {
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
    streams: AtomicU32,
    memory: MemoryBudget,
}

/// The tenant of a call.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    tenant: Arc<Tenant>,
    usage: Arc<TenantUsage>,
    replicas: u32,
}

impl ApiKeys {
    /// Limits are those of a tenant at `replicas` routers together. A tenant has at most
    /// `tenant_memory` bytes of `memory`.
    pub(crate) fn new(
        file: Reloaded<KeyFile>,
        replicas: u32,
        memory: &MemoryBudget,
        tenant_memory: u64,
        metrics: &Metrics,
    ) -> Self {
        file.current().labels().for_each(|label| metrics.add_tenant(label));
        Self(Arc::new(Keys {
            file,
            replicas: replicas.max(1),
            memory: (memory.clone(), tenant_memory),
            usage: Mutex::default(),
            failures: Failures::default(),
            metrics: metrics.clone(),
        }))
    }

    /// Returns the tenant of a call with these headers, or UNAUTHENTICATED after a delay.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
    ) -> Result<Account, ServiceError> {
        match self.account(headers) {
            Ok(account) => Ok(account),
            Err(why) => {
                let error = ServiceError::Unauthenticated(format!(
                    "{why}; send `authorization: Bearer KEY` with a key of this cluster"
                ));
                self.0.metrics.rejected(&error);
                if let Some(peer) = peer {
                    tracing::debug!(%peer, %why, "refused a call");
                    self.0.failures.delay(peer).await;
                }
                Err(error)
            }
        }
    }

    fn account(&self, headers: &HeaderMap) -> Result<Account, &'static str> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or("the call has no API key")?;
        if values.next().is_some() {
            return Err("the call has more than one API key");
        }
        let value = value.to_str().map_err(|_| "the API key has characters that no key has")?;
        let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err("the authorization is no bearer token");
        }
        let hash = KeyHash::presented(key.trim()).ok_or("the API key is unknown")?;
        let file = self.0.file.current();
        let tenant = file.tenant(&hash).ok_or("the API key is unknown")?;
        Ok(self.of(tenant))
    }

    fn of(&self, tenant: &Arc<Tenant>) -> Account {
        let Keys { usage, memory: (all, share), replicas, metrics, .. } = &*self.0;
        let mut usage = lock(usage);
        let known = usage.get(&tenant.name).cloned();
        let usage = known.unwrap_or_else(|| {
            // Of tenants that the file no longer has, few are kept.
            if usage.len() > self.0.file.current().entries().len() + MAX_FORMER {
                usage.retain(|_, usage| Arc::strong_count(usage) > 1);
            }
            metrics.add_tenant(&tenant.label);
            let new = Arc::new(TenantUsage {
                requests: Mutex::default(),
                tokens: Mutex::default(),
                streams: AtomicU32::new(0),
                memory: all.share("--tenant-max-request-memory", *share),
            });
            usage.insert(Arc::clone(&tenant.name), Arc::clone(&new));
            new
        });
        Account { tenant: Arc::clone(tenant), usage, replicas: *replicas }
    }
}

impl Account {
    /// Returns the name of the tenant.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.tenant.name
    }

    /// Returns what the tenant may do.
    pub(crate) fn policy(&self) -> &TenantPolicy {
        &self.tenant.policy
    }

    /// Returns the memory budget of the tenant.
    pub(crate) fn memory(&self) -> &MemoryBudget {
        &self.usage.memory
    }

    /// Admits a request of an estimated number of tokens, or says when it can be.
    pub(crate) fn admit(&self, tokens: u64, metrics: &Metrics) -> Result<Admitted, ServiceError> {
        let TenantPolicy { max_concurrent_streams, .. } = self.tenant.policy;
        let streams = Stream::open(&self.usage);
        let limit = max_concurrent_streams.map(|limit| limit.div_ceil(self.replicas));
        if let Some(limit) = limit.filter(|limit| streams.number > *limit) {
            let what = format!("{limit} streams of this tenant are running or waiting, the limit");
            return Err(self.limited("streams", what, RETRY_STREAMS, metrics));
        }
        if let Some(rate) = self.rate(self.tenant.policy.requests_per_minute) {
            lock(&self.usage.requests).take(1.0, rate).map_err(|wait| {
                let what = format!("this tenant is limited to {rate} requests a minute");
                self.limited("requests", what, wait, metrics)
            })?;
        }
        if let Some(rate) = self.rate(self.tenant.policy.tokens_per_minute) {
            let taken = lock(&self.usage.tokens).take(tokens as f64, rate);
            if let Err(wait) = taken {
                self.refund_request();
                let what = format!(
                    "this tenant is limited to {rate} tokens a minute, and this request takes up to \
                     {tokens}"
                );
                return Err(self.limited("tokens", what, wait, metrics));
            }
        }
        metrics.tenant_admitted(&self.tenant.label);
        Ok(Admitted {
            account: self.clone(),
            _stream: streams,
            metrics: metrics.clone(),
            estimate: tokens,
            prompt: 0,
            completion: 0,
        })
    }

    /// Returns this router's part of a limit per minute.
    fn rate(&self, per_minute: Option<u64>) -> Option<f64> {
        per_minute.map(|limit| limit as f64 / f64::from(self.replicas))
    }

    fn refund_request(&self) {
        if let Some(rate) = self.rate(self.tenant.policy.requests_per_minute) {
            lock(&self.usage.requests).put_back(1.0, rate);
        }
    }

    fn limited(
        &self,
        limit: &'static str,
        what: String,
        retry_after: Duration,
        metrics: &Metrics,
    ) -> ServiceError {
        metrics.tenant_limited(&self.tenant.label, limit);
        ServiceError::RateLimited { what, retry_after }
    }
}

/// A stream of a tenant, until it is dropped.
#[derive(Debug)]
struct Stream {
    usage: Arc<TenantUsage>,
    number: u32,
}

impl Stream {
    fn open(usage: &Arc<TenantUsage>) -> Self {
        let number = usage.streams.fetch_add(1, Ordering::Relaxed) + 1;
        Self { usage: Arc::clone(usage), number }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.usage.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An admitted request. Dropping it returns what was estimated and not used.
#[derive(Debug)]
pub(crate) struct Admitted {
    account: Account,
    _stream: Stream,
    metrics: Metrics,
    estimate: u64,
    prompt: u64,
    completion: u64,
}

impl Admitted {
    /// Records the tokens of the prompt, once a worker has counted them.
    pub(crate) fn prompt(&mut self, tokens: u64) {
        self.prompt = tokens;
    }

    /// Records tokens that were generated.
    pub(crate) fn generated(&mut self, tokens: u64) {
        self.completion += tokens;
    }

    /// Records the final usage.
    pub(crate) fn used(&mut self, prompt: u64, completion: u64) {
        (self.prompt, self.completion) = (prompt, completion);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Account { tenant, usage, .. } = &self.account;
        let used = self.prompt + self.completion;
        if used == 0 {
            self.account.refund_request();
        }
        if let Some(rate) = self.account.rate(tenant.policy.tokens_per_minute) {
            lock(&usage.tokens).put_back(self.estimate as f64 - used as f64, rate);
        }
        self.metrics.tenant_used(&tenant.label, self.prompt, self.completion);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use http::HeaderValue;
    use tokio::time::Instant;

    use super::*;

    const KEY: &str = "sk-stoker-test";
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn keys(policy: &str, replicas: u32) -> ApiKeys {
        let hash = KeyHash::of(KEY);
        let key = format!("[[keys]]\nid = 'a'\ntenant = 'acme'\nsha256 = '{hash}'\n");
        let file = KeyFile::parse(&format!("[tenants.acme]\n{policy}\n{key}")).unwrap();
        let memory = MemoryBudget::new(1_000);
        ApiKeys::new(Reloaded::fixed(file), replicas, &memory, 500, &Metrics::default())
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    async fn account(keys: &ApiKeys) -> Account {
        keys.authenticate(&headers(&[&format!("Bearer {KEY}")]), Some(PEER)).await.unwrap()
    }

    fn wait(error: Result<Admitted, ServiceError>) -> Duration {
        match error {
            Err(ServiceError::RateLimited { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_failing_calls_are_delayed() {
        let keys = keys("", 1);
        for wrong in [
            &[][..],
            &["Bearer wrong"],
            &["Basic sk-stoker-test"],
            &["Bearer"],
            &[KEY],
            &["Bearer sk-stoker-test", "Bearer sk-stoker-test"],
        ] {
            let began = Instant::now();
            let error = keys.authenticate(&headers(wrong), Some(PEER)).await.unwrap_err();
            assert!(matches!(error, ServiceError::Unauthenticated(_)), "{wrong:?}: {error}");
            assert!(!error.to_string().contains("wrong"), "{error}");
            assert!(began.elapsed() >= Duration::from_millis(100));
            for valid in ["Bearer sk-stoker-test", "bearer  sk-stoker-test"] {
                let began = Instant::now();
                let account = keys.authenticate(&headers(&[valid]), Some(PEER)).await.unwrap();
                assert_eq!((&**account.name(), began.elapsed()), ("acme", Duration::ZERO));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_charged_for_what_they_use() {
        let (keys, metrics) = (keys("tokens-per-minute = 600", 1), Metrics::default());
        let account = account(&keys).await;
        let mut first = account.admit(500, &metrics).unwrap();
        assert_eq!(wait(account.admit(200, &metrics)), Duration::from_secs(10));
        first.prompt(20);
        first.generated(30);
        drop(first);
        // 550 tokens are left, and a request that fails returns all of its own.
        drop(account.admit(550, &metrics).unwrap());
        let mut third = account.admit(550, &metrics).unwrap();
        third.used(500, 350);
        drop(third);
        assert_eq!(wait(account.admit(1, &metrics)), Duration::from_millis(30_100));
    }

    #[tokio::test(start_paused = true)]
    async fn limits_are_divided_by_the_number_of_routers() {
        let policy = "requests-per-minute = 6\nmax-concurrent-streams = 5";
        let (keys, metrics) = (keys(policy, 3), Metrics::default());
        let account = account(&keys).await;
        let mut open = vec![account.admit(1, &metrics).unwrap()];
        open.push(account.admit(1, &metrics).unwrap());
        assert_eq!(wait(account.admit(1, &metrics)), RETRY_STREAMS, "two of five streams");
        open.iter_mut().for_each(|admitted| admitted.used(1, 1));
        drop(open);
        assert_eq!(
            wait(account.admit(1, &metrics)),
            Duration::from_secs(30),
            "two of six requests"
        );
    }

    #[tokio::test]
    async fn a_tenant_has_a_share_of_the_memory() {
        let account = account(&keys("", 1)).await;
        assert!(account.memory().try_reserve(501).is_none());
        let held = account.memory().try_reserve(500).unwrap();
        assert!(account.memory().try_reserve(1).is_none());
        drop(held);
        assert!(account.memory().try_reserve(1).is_some());
    }
}
