//! The target's own metrics, read every second beside the load.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use stoker_shared::error::root_cause;
use tokio::{
    task::{AbortHandle, spawn},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{drive::prometheus, error::Error};

/// Interval of scrapes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of a scrape.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a scrape, in bytes.
const MAX_BYTES: usize = 16 << 20;
/// Maximum number of series of a target, which chooses them.
const MAX_SERIES: usize = 10_000;
/// Maximum number of scrapes that are kept. Of more, every second one is.
const MAX_POINTS: usize = 240;

/// URL of a target's metrics: `http://host:port/metrics`, or `host:port` for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsUrl(Uri);

impl FromStr for MetricsUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usage = "write host:port, or a URL as in http://127.0.0.1:9090/metrics";
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|_| usage)?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(usage);
        }
        if uri.path() == "/" {
            let url = format!("{}/metrics", url.trim_end_matches('/'));
            return url.parse().map(Self).map_err(|_| usage);
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for MetricsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What was read of one target.
#[derive(Debug, Clone)]
pub struct Scraped {
    /// Where from.
    pub url: String,
    /// Times of the scrapes, from the start of the pass.
    pub at: Vec<Duration>,
    /// The series, by name and labels.
    pub series: BTreeMap<String, Series>,
    /// Number of scrapes that failed.
    pub failed: u64,
}

/// A series over time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Whether it only grows.
    pub is_counter: bool,
    /// Its value at each scrape; not a number where it was missing.
    pub values: Vec<f64>,
}

/// Reads metrics every second until dropped.
#[derive(Debug)]
pub struct Scraper {
    targets: Vec<(Arc<Mutex<Scraped>>, AbortHandle)>,
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// Fails unless metrics can be read.
pub async fn check(urls: &[MetricsUrl]) -> Result<(), Error> {
    let client = client();
    for url in urls {
        let text = fetch(&client, url).await;
        let text = text.map_err(|why| Error::Failed(format!("--scrape {url}: {why}")))?;
        if prometheus::parse(&text).next().is_none() {
            return Err(Error::Failed(format!("--scrape {url}: the response has no metrics")));
        }
    }
    Ok(())
}

impl Scraper {
    /// Starts to read `urls`.
    pub fn start(urls: &[MetricsUrl], started: Instant) -> Self {
        let client = client();
        let start = |url: &MetricsUrl| {
            let scraped = Scraped::new(url.to_string());
            let scraped = Arc::new(Mutex::new(scraped));
            let task = spawn(scrape(client.clone(), url.clone(), started, Arc::clone(&scraped)));
            (scraped, task.abort_handle())
        };
        Self { targets: urls.iter().map(start).collect() }
    }

    /// Ends, and returns what was read.
    pub fn end(self) -> Vec<Scraped> {
        let read = |(scraped, task): &(Arc<Mutex<Scraped>>, AbortHandle)| {
            task.abort();
            scraped.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        self.targets.iter().map(read).collect()
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.targets.iter().for_each(|(_, task)| task.abort());
    }
}

impl Scraped {
    fn new(url: String) -> Self {
        Self { url, at: Vec::new(), series: BTreeMap::new(), failed: 0 }
    }

    fn add(&mut self, at: Duration, text: &str) {
        let before = self.at.len();
        self.at.push(at);
        for metric in prometheus::parse(text) {
            if !self.series.contains_key(metric.series) {
                if self.series.len() == MAX_SERIES {
                    continue;
                }
                self.series.insert(metric.series.to_owned(), Series::default());
            }
            let Some(series) = self.series.get_mut(metric.series) else { continue };
            series.is_counter = metric.is_counter;
            series.values.resize(before, f64::NAN);
            series.values.push(metric.value);
        }
        for series in self.series.values_mut() {
            series.values.resize(before + 1, f64::NAN);
        }
        if self.at.len() > MAX_POINTS {
            let mut index = 0;
            self.at.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            for series in self.series.values_mut() {
                let mut index = 0;
                series.values.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
            }
        }
    }
}

async fn scrape(
    client: HttpClient,
    url: MetricsUrl,
    started: Instant,
    scraped: Arc<Mutex<Scraped>>,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let text = fetch(&client, &url).await;
        let mut scraped = scraped.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Ok(text) => scraped.add(started.elapsed(), &text),
            Err(_) => scraped.failed += 1,
        }
    }
}

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(TIMEOUT));
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn fetch(client: &HttpClient, url: &MetricsUrl) -> Result<String, String> {
    let read = async {
        let response = client.get(url.0.clone()).await.map_err(|error| root_cause(&error))?;
        if response.status() != StatusCode::OK {
            return Err(response.status().to_string());
        }
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    timeout(TIMEOUT, read).await.map_err(|_| format!("no response within {TIMEOUT:?}"))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn urls_are_completed() {
        for (text, url) in [
            ("127.0.0.1:9090", "http://127.0.0.1:9090/metrics"),
            ("http://worker:9090/", "http://worker:9090/metrics"),
            ("http://worker:9090/stats?x=1", "http://worker:9090/stats?x=1"),
        ] {
            assert_eq!(text.parse::<MetricsUrl>().unwrap().to_string(), url);
        }
        for bad in ["", "https://worker:1", "http://", "a b", "file:///metrics"] {
            assert!(bad.parse::<MetricsUrl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn series_have_a_value_for_every_scrape() {
        let mut scraped = Scraped::new("x".into());
        let second = Duration::from_secs;
        scraped.add(second(0), "a 1\n");
        scraped.add(second(1), "b 2\n");
        scraped.add(second(2), "a 3\nb 4\n");
        let values = |name: &str| scraped.series[name].values.clone();
        let (a, b) = (values("a"), values("b"));
        assert!(a[0] == 1.0 && a[1].is_nan() && a[2] == 3.0, "{a:?}");
        assert!(b[0].is_nan() && b[1] == 2.0 && b[2] == 4.0, "{b:?}");
        for at in 3..=MAX_POINTS as u64 {
            scraped.add(second(at), "a 0\n");
        }
        assert_eq!(scraped.at.len(), MAX_POINTS / 2 + 1);
        assert_eq!((scraped.at[1], scraped.series["b"].values[1]), (second(2), 4.0));
        assert_eq!(scraped.series["a"].values.len(), scraped.at.len());
    }
}
