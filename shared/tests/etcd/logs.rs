//! Captures the log of a test at every level. Under `tokio::test`, workers and routers run in the
//! thread of the test.

use std::{io, time::Duration};

use tokio::{sync::watch, time::timeout};
use tracing::{Level, subscriber::DefaultGuard};

/// Limit for waiting, far longer than anything here takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Logs {
    text: watch::Sender<String>,
    _guard: DefaultGuard,
}

#[derive(Clone)]
struct Writer(watch::Sender<String>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|text| text.push_str(&String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Logs {
    /// Starts to capture the log.
    pub(crate) fn collect() -> Self {
        let text = watch::Sender::default();
        let writer = Writer(text.clone());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn text(&self) -> String {
        self.text.borrow().clone()
    }

    /// Returns the lines that contain all `parts`.
    pub(crate) fn lines(&self, parts: &[&str]) -> Vec<String> {
        let text = self.text();
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        text.lines().filter(has_all).map(str::to_owned).collect()
    }

    /// Waits for a line that contains all `parts`.
    pub(crate) async fn until(&self, parts: &[&str]) {
        self.until_lines(1, parts).await;
    }

    /// Waits for `count` lines that contain all `parts`.
    pub(crate) async fn until_lines(&self, count: usize, parts: &[&str]) {
        let mut text = self.text.subscribe();
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        let logged = text.wait_for(|text| text.lines().filter(has_all).count() >= count);
        assert!(timeout(TEST_TIMEOUT, logged).await.is_ok(), "{parts:?} was never logged");
    }
}
