//! A real etcd in a process of its own. Tests of other packages include this file.
#![allow(dead_code, unreachable_pub, reason = "not every test needs everything")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/skip.rs"]
pub mod skip;

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// Not the usual address: a port that etcd leaves for a moment cannot be taken by anybody's outgoing
/// connection, which would come from 127.0.0.1. Only Linux has all of 127.0.0.0/8.
const HOST: &str = if cfg!(target_os = "linux") { "127.0.0.2" } else { "127.0.0.1" };

/// One server, alone in its cluster. Killed when it is dropped.
pub struct Etcd {
    binary: PathBuf,
    data: TempDir,
    client: String,
    peer: String,
    child: Option<Child>,
}

impl Etcd {
    /// Returns one for each version of etcd that is there: those that `STOKER_TEST_ETCD` names, separated by colons,
    /// else the one on the path. None at all is an absence, reported as such.
    #[track_caller]
    pub fn each() -> impl Iterator<Item = Self> {
        Self::each_stopped().map(|mut etcd| {
            etcd.start();
            etcd
        })
    }

    /// Returns the same, not started yet.
    #[track_caller]
    pub fn each_stopped() -> impl Iterator<Item = Self> {
        let found = match env::var_os("STOKER_TEST_ETCD") {
            Some(named) => env::split_paths(&named).collect(),
            None => on_the_path().into_iter().collect::<Vec<_>>(),
        };
        if found.is_empty() {
            skip::absent("etcd", "install etcd-server or set STOKER_TEST_ETCD to one or several");
        }
        found.into_iter().map(Self::stopped)
    }

    fn stopped(binary: PathBuf) -> Self {
        assert!(binary.exists(), "STOKER_TEST_ETCD: {} is absent", binary.display());
        eprintln!("with {}", binary.display());
        // Both held at once, so that they differ.
        let ports = [(); 2].map(|()| TcpListener::bind((HOST, 0)).unwrap());
        let [client, peer] = ports.map(|port| format!("http://{}", port.local_addr().unwrap()));
        Self { binary, data: tempfile::tempdir().unwrap(), client, peer, child: None }
    }

    /// Where clients find it.
    pub fn url(&self) -> &str {
        &self.client
    }

    /// Starts it on the data that it has. It answers a moment later.
    pub fn start(&mut self) {
        let data = self.data.path().join("data");
        let cluster = format!("test={}", self.peer);
        let child = Command::new(&self.binary)
            .args(["--name", "test", "--logger", "zap", "--log-level", "fatal"])
            // As quick as a cluster of one can be; the shortest lease depends on it.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &self.client, "--advertise-client-urls", &self.client])
            .args(["--listen-peer-urls", &self.peer, "--initial-advertise-peer-urls", &self.peer])
            .args(["--initial-cluster", &cluster])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Takes everything that it knows. It must not run.
    pub fn wipe(&self) {
        assert!(self.child.is_none());
        fs::remove_dir_all(self.data.path().join("data")).unwrap();
    }

    /// Stops it where it is, with its sockets open.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes the process.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn on_the_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join("etcd")).find(|program| program.is_file())
}
