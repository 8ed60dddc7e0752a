//! Thread pool of the operations. A store wakes its threads, and they sleep while there is no work.
//!
//! A decode step consists of some hundred operations of 20 to 500 microseconds. Waking a sleeping
//! thread takes about ten, so a thread without work spins before it sleeps. It never sleeps within
//! a step, and an idle worker uses no CPU time.
//!
//! Work is split into chunks. Each thread has a range of them and takes them in order, since memory
//! is fastest when read sequentially. A thread that has finished its range takes chunks from the
//! others'. The caller takes chunks too, and at the end waits only for threads that have started
//! one. A thread that the system schedules late reduces the speed but does not delay completion.

use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    num::NonZeroUsize,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, OnceLock, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Time for which a thread spins before it sleeps. Longer than the gap between two operations of a
/// step.
const SPIN: Duration = Duration::from_micros(50);
/// Number of spins between two reads of the clock.
const CLOCK_INTERVAL: usize = 128;
/// Number of spins after which the caller yields to other threads, which may need this core.
const YIELD_INTERVAL: usize = 1 << 14;

/// Set in the gate while threads may enter.
const OPEN: u64 = 1 << 31;
/// One thread inside, counted in the lowest bits of the gate.
const INSIDE: u64 = 1;
/// One more job, counted in the highest bits of the gate.
const EPOCH: u64 = 1 << 32;

/// Threads that work together: the caller and the pool's own.
pub struct Pool {
    state: Arc<PoolState>,
    /// Held by the caller whose job runs.
    caller: Mutex<()>,
    helpers: Vec<Helper>,
}

struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// State that all threads share.
struct PoolState {
    /// Number of the current job, whether threads may enter it, and the number of threads inside.
    gate: CachePadded<AtomicU64>,
    /// Next chunk of each thread's range. The caller is thread 0.
    next: Vec<CachePadded<AtomicUsize>>,
    job: CachePadded<UnsafeCell<Option<Job>>>,
    /// Set if a chunk of the current job panicked on a helper thread.
    panicked: AtomicBool,
    shutdown: AtomicBool,
}

/// Pads a value to separate cache lines. CPUs prefetch lines in pairs.
#[repr(align(128))]
#[derive(Default)]
struct CachePadded<T>(T);

#[derive(Clone, Copy)]
struct Job {
    run_chunk: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

impl Job {
    /// Returns the chunks of `thread` out of `threads`.
    fn range(&self, thread: usize, threads: usize) -> Range<usize> {
        self.chunks * thread / threads..self.chunks * (thread + 1) / threads
    }
}

// SAFETY: `job` is written only by the caller, while the gate is closed and no thread is inside.
// Only threads that have entered read it. The gate orders the two. The pointer in it outlives every
// thread inside (see `Pool::run`).
unsafe impl Sync for PoolState {}
// SAFETY: as for `Sync`; nothing in it belongs to a thread.
unsafe impl Send for PoolState {}

static THREADS: OnceLock<NonZeroUsize> = OnceLock::new();

/// Sets the number of threads of operations, before the first one runs. Returns `false` if it was
/// set already.
pub fn set_threads(count: NonZeroUsize) -> bool {
    THREADS.set(count).is_ok()
}

/// Returns the number of threads of operations. The default is the available parallelism, by CPU
/// affinity and cgroup quota.
pub fn threads() -> usize {
    let may = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    THREADS.get_or_init(may).get()
}

/// Returns the pool of this process, created on first use.
pub fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(threads()))
}

impl Pool {
    /// Creates a pool of `threads` in total. If the system refuses some of them, the others do the
    /// work.
    pub fn new(threads: usize) -> Self {
        let state = Arc::new(PoolState {
            gate: CachePadded::default(),
            next: (0..threads.max(1)).map(|_| CachePadded::default()).collect(),
            job: CachePadded::default(),
            panicked: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
        });
        let helper = |number| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (state, flag) = (Arc::clone(&state), Arc::clone(&asleep));
            let named = thread::Builder::new().name(format!("ops {number}"));
            let spawned = named.spawn(move || worker_loop(number, &state, &flag)).ok()?;
            Some(Helper { thread: spawned.thread().clone(), asleep })
        };
        let helpers = (1..threads).map_while(helper).collect();
        Self { state, caller: Mutex::new(()), helpers }
    }

    /// Number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `run_chunk` once with every number below `chunks`, on any thread, in any order.
    ///
    /// If the pool is busy, with another caller's job or because a chunk calls this, the caller
    /// runs all chunks.
    pub fn run(&self, chunks: usize, run_chunk: impl Fn(usize) + Sync) {
        let lock = match self.caller.try_lock() {
            Ok(lock) => lock,
            // A chunk panicked while its caller held the lock; the job was closed nevertheless.
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..chunks).for_each(run_chunk),
        };
        if chunks <= 1 || self.helpers.is_empty() {
            return (0..chunks).for_each(run_chunk);
        }
        let state = &*self.state;
        let run_chunk: &(dyn Fn(usize) + Sync) = &run_chunk;
        // SAFETY: only the lifetime changes. Threads use the pointer only inside the gate, and
        // `CloseGate` returns from this function, even on a panic, only when the gate is closed and
        // no thread is inside.
        let run_chunk: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(run_chunk) };
        let job = Job { run_chunk, chunks };
        // SAFETY: this caller has the lock, and the previous one left the gate closed and empty.
        unsafe { *state.job.0.get() = Some(job) };
        for (thread, next) in state.next.iter().enumerate() {
            next.0.store(job.range(thread, state.next.len()).start, Ordering::Relaxed);
        }
        // The previous caller may have unwound, from a panic of its own, before it read this.
        state.panicked.store(false, Ordering::Relaxed);
        let close_gate = CloseGate(state);
        let epoch = state.gate.0.load(Ordering::Relaxed) & !(EPOCH - 1);
        // Sequentially consistent, as is the other side in `sleep`: either a thread that is about
        // to sleep sees the open gate, or this one sees that it sleeps.
        state.gate.0.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for helper in self.helpers.iter().take(chunks - 1) {
            if helper.asleep.load(Ordering::SeqCst) {
                helper.thread.unpark();
            }
        }
        // SAFETY: the pointer is to `run_chunk`, above.
        unsafe { state.run_chunks(0, job) };
        drop(close_gate);
        // Read under the lock, since the next caller clears it.
        let panicked = state.panicked.load(Ordering::Relaxed);
        drop(lock);
        if panicked {
            panic!("an operation panicked on another thread; its message is above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.shutdown.store(true, Ordering::SeqCst);
        for helper in &self.helpers {
            helper.thread.unpark();
        }
    }
}

/// Closes the gate on drop, and waits until no thread is inside.
struct CloseGate<'a>(&'a PoolState);

impl Drop for CloseGate<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate.0;
        gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0usize;
        while gate.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            spins += 1;
            if spins.is_multiple_of(YIELD_INTERVAL) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl PoolState {
    /// Runs the remaining chunks of `job`: first those in the range of `thread`, then the others'.
    ///
    /// # Safety
    /// The pointer in `job` must be valid.
    unsafe fn run_chunks(&self, thread: usize, job: Job) {
        // SAFETY: guaranteed by the caller.
        let run_chunk = unsafe { &*job.run_chunk };
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let end = job.range(owner, threads).end;
            loop {
                let index = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                run_chunk(index);
            }
        }
    }

    /// Whether `gate` is open for a job after epoch `done`.
    fn is_new(gate: u64, done: u64) -> bool {
        gate & OPEN != 0 && gate / EPOCH != done
    }

    /// Enters the job at gate value `seen` and runs chunks of it. Returns `false` without entering
    /// if the gate has changed.
    fn enter(&self, thread: usize, seen: u64) -> bool {
        let entered =
            self.gate.0.compare_exchange(seen, seen + INSIDE, Ordering::Acquire, Ordering::Relaxed);
        if entered.is_err() {
            return false;
        }
        // SAFETY: this thread is inside the gate, so the cell is not written.
        if let Some(job) = unsafe { *self.job.0.get() } {
            // SAFETY: the caller keeps the pointee alive until this thread has left.
            let chunks = AssertUnwindSafe(|| unsafe { self.run_chunks(thread, job) });
            if panic::catch_unwind(chunks).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        self.gate.0.fetch_sub(INSIDE, Ordering::Release);
        true
    }
}

/// A slice split into chunks of equal length (the last may be shorter) that threads write
/// concurrently.
pub struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk_len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it represents exclusive chunks of a slice, which may be sent if their elements may.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    /// Splits `slice` into chunks of `chunk_len` elements.
    pub fn new(slice: &'a mut [T], chunk_len: usize) -> Self {
        let (start, len) = (slice.as_mut_ptr(), slice.len());
        Self { start, len, chunk_len: chunk_len.max(1), slice: PhantomData }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.len.div_ceil(self.chunk_len)
    }

    /// Whether there are no chunks.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns chunk `index`.
    ///
    /// # Safety
    /// There must be no other reference to this chunk.
    #[allow(clippy::mut_from_ref, reason = "the caller guarantees exclusive access")]
    pub unsafe fn chunk(&self, index: usize) -> &mut [T] {
        let first = index * self.chunk_len;
        assert!(first < self.len, "the chunk exists");
        let len = self.chunk_len.min(self.len - first);
        // SAFETY: within the slice that is borrowed mutably; the caller guarantees exclusive
        // access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// A matrix in rows, of which threads write ranges of columns concurrently.
pub struct Grid<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it represents exclusive parts of a slice of numbers.
unsafe impl Sync for Grid<'_> {}

impl<'a> Grid<'a> {
    /// `matrix [rows, columns]`
    pub fn new(matrix: &'a mut [f32], columns: usize) -> Self {
        let (start, len) = (matrix.as_mut_ptr(), matrix.len());
        Self { start, rows: len / columns.max(1), columns, matrix: PhantomData }
    }

    /// Returns `columns` of `row`.
    ///
    /// # Safety
    /// There must be no other reference to any of them.
    #[allow(clippy::mut_from_ref, reason = "the caller guarantees exclusive access")]
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        // SAFETY: within the matrix that is borrowed mutably; the caller guarantees exclusive
        // access.
        unsafe {
            let start = self.start.add(row * self.columns + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}

/// Main loop of the pool's own threads.
fn worker_loop(thread: usize, state: &PoolState, asleep: &AtomicBool) {
    let mut idle_since = Instant::now();
    let mut done = 0;
    while !state.shutdown.load(Ordering::Relaxed) {
        for _ in 0..CLOCK_INTERVAL {
            let seen = state.gate.0.load(Ordering::Relaxed);
            if PoolState::is_new(seen, done) && state.enter(thread, seen) {
                done = seen / EPOCH;
                idle_since = Instant::now();
            }
            std::hint::spin_loop();
        }
        if idle_since.elapsed() >= SPIN {
            sleep(state, asleep, done);
            idle_since = Instant::now();
        }
    }
}

/// Sleeps until there is a job after epoch `done`.
fn sleep(state: &PoolState, asleep: &AtomicBool, done: u64) {
    asleep.store(true, Ordering::SeqCst);
    let is_new = || PoolState::is_new(state.gate.0.load(Ordering::SeqCst), done);
    while !is_new() && !state.shutdown.load(Ordering::SeqCst) {
        thread::park();
    }
    asleep.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
