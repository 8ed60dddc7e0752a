//! Runs `kubectl` and `helm`.

use std::{
    future::Future,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    process::Command,
    time::{sleep, timeout},
};

/// Limit of every wait, far longer than any of them takes.
pub const LIMIT: Duration = Duration::from_secs(420);
/// Interval between two looks at the state of the cluster.
const INTERVAL: Duration = Duration::from_millis(500);

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs a program in the root of the repository with `input` as its standard input. Returns its
/// standard output, or as the error its standard error.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(repository()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("{program}: {error}; scripts/kubernetes says what to install")
    });
    // Fails if the program has ended without reading, which its status says.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let ended = timeout(LIMIT, child.wait_with_output()).await;
    let Output { status, stdout, stderr } =
        ended.unwrap_or_else(|_| panic!("{program} {arguments:?}: not done in {LIMIT:?}")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
}

/// Looks until `look` finds something. `what` is what it waits for.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let poll = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(INTERVAL).await;
        }
    };
    timeout(LIMIT, poll).await.unwrap_or_else(|_| panic!("waited {LIMIT:?} for {what}"))
}

/// The strings at `key` of every element of the array.
pub fn strings(array: &Value, key: &str) -> Vec<String> {
    let elements = array.as_array().into_iter().flatten();
    elements.filter_map(|element| element.pointer(key)?.as_str().map(str::to_owned)).collect()
}
