//! Memory, open files and processor time of the processes that are attacked.

use std::{
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::timetable::Timetable;

/// Interval between two readings.
const INTERVAL: Duration = Duration::from_millis(500);
/// Ticks per second in /proc, which Linux fixes for programs.
const TICKS: f64 = 100.0;

/// A process, as it was at the beginning, at most, and at the end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// Whether it lives.
    pub alive: bool,
    /// Resident memory in KiB: at first, at most, at last.
    pub rss_kib: [u64; 3],
    /// Open files: at first, at most, at last.
    pub files: [u64; 3],
    /// Processor time in quiet and in hostile windows, in seconds.
    pub cpu_seconds: [f64; 2],
    #[serde(skip)]
    last_cpu: f64,
}

struct Reading {
    rss_kib: u64,
    files: u64,
    cpu: f64,
}

/// The processes, read regularly while this exists.
#[derive(Debug)]
pub struct Watch {
    processes: Arc<Mutex<Vec<Process>>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Reads each process, which must exist, and starts to watch them.
    pub fn start(pids: &[(String, u32)], timetable: Timetable) -> Result<Self, String> {
        let mut processes = Vec::new();
        for (name, pid) in pids {
            let Some(Reading { rss_kib, files, cpu }) = read(*pid) else {
                return Err(format!("--pid {name}={pid}: no such process, or not on Linux"));
            };
            processes.push(Process {
                name: name.clone(),
                pid: *pid,
                alive: true,
                rss_kib: [rss_kib; 3],
                files: [files; 3],
                cpu_seconds: [0.0; 2],
                last_cpu: cpu,
            });
        }
        let processes = Arc::new(Mutex::new(processes));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Self { processes: Arc::clone(&processes), stop: Arc::clone(&stop) };
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                sleep(INTERVAL).await;
                let slot = timetable.slot(Instant::now());
                let kind = slot.map(|slot| usize::from(Timetable::is_hostile(slot.window)));
                lock(&processes).iter_mut().for_each(|process| process.update(kind));
            }
        });
        Ok(watch)
    }

    /// Reads each process a last time, and ends.
    pub fn end(self) -> Vec<Process> {
        self.stop.store(true, Ordering::Relaxed);
        let mut processes = lock(&self.processes);
        processes.iter_mut().for_each(|process| process.update(None));
        processes.clone()
    }
}

impl Process {
    fn update(&mut self, kind: Option<usize>) {
        let Some(Reading { rss_kib, files, cpu }) = read(self.pid) else {
            self.alive = false;
            return;
        };
        for (values, now) in [(&mut self.rss_kib, rss_kib), (&mut self.files, files)] {
            values[1] = values[1].max(now);
            values[2] = now;
        }
        if let Some(kind) = kind {
            self.cpu_seconds[kind] += cpu - self.last_cpu;
        }
        self.last_cpu = cpu;
    }
}

fn lock(processes: &Mutex<Vec<Process>>) -> MutexGuard<'_, Vec<Process>> {
    processes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a process. `None` if it has ended, also if its parent has not noticed.
fn read(pid: u32) -> Option<Reading> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // A process that has ended has no memory.
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib = rss.split_whitespace().next()?.parse().ok()?;
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    Some(Reading { rss_kib, files, cpu: (ticks(11)? + ticks(12)?) / TICKS })
}
