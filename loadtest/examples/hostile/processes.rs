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

/// What the last readings showed.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// The processes, this program as the last one.
    pub processes: Vec<Process>,
    /// Processor time of the whole machine in quiet and in hostile windows, in seconds.
    pub machine_cpu_seconds: [f64; 2],
    last_machine_cpu: Option<f64>,
}

/// The processes, read regularly while this exists.
#[derive(Debug)]
pub struct Watch {
    readings: Arc<Mutex<Readings>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Reads each process, which must exist, and starts to watch them.
    pub fn start(pids: &[(String, u32)], timetable: Timetable) -> Result<Self, String> {
        let mut processes = Vec::new();
        let own = ("this program".to_owned(), std::process::id());
        for (name, pid) in pids.iter().chain([&own]) {
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
        let readings = Arc::new(Mutex::new(Readings { processes, ..Readings::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Self { readings: Arc::clone(&readings), stop: Arc::clone(&stop) };
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                sleep(INTERVAL).await;
                let slot = timetable.slot(Instant::now());
                let kind = slot.map(|slot| usize::from(Timetable::is_hostile(slot.window)));
                lock(&readings).update(kind);
            }
        });
        Ok(watch)
    }

    /// Reads each process a last time, and ends.
    pub fn end(self) -> Readings {
        self.stop.store(true, Ordering::Relaxed);
        let mut readings = lock(&self.readings);
        readings.update(None);
        readings.clone()
    }
}

impl Readings {
    fn update(&mut self, kind: Option<usize>) {
        self.processes.iter_mut().for_each(|process| process.update(kind));
        let now = machine_cpu();
        if let (Some(kind), Some(now), Some(last)) = (kind, now, self.last_machine_cpu) {
            self.machine_cpu_seconds[kind] += now - last;
        }
        self.last_machine_cpu = now;
    }

    /// Returns the processor time of all other processes in quiet and in hostile windows, in seconds.
    pub fn others(&self) -> [f64; 2] {
        [0, 1].map(|kind| {
            let ours: f64 = self.processes.iter().map(|process| process.cpu_seconds[kind]).sum();
            (self.machine_cpu_seconds[kind] - ours).max(0.0)
        })
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

fn lock(readings: &Mutex<Readings>) -> MutexGuard<'_, Readings> {
    readings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the seconds that the processors of this machine were busy.
fn machine_cpu() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    // User, nice, system, idle, iowait, irq, softirq.
    let fields: Vec<f64> =
        line.split_whitespace().take(7).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = fields.get(3)? + fields.get(4)?;
    Some((fields.iter().sum::<f64>() - idle) / TICKS)
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
