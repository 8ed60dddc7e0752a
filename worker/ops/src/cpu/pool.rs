//! The threads that operations run on: woken by a store, and asleep while nothing comes.
//!
//! A decode step is some hundred operations of 20 to 500 microseconds. Waking a sleeping thread costs about
//! ten, so a thread that has run out of work looks for more in a loop before it sleeps: within a step it never
//! does, and of an idle worker nothing is left.
//!
//! Work is cut into pieces. Each thread has a range of them and takes them in order, since memory is fastest read
//! straight ahead; one that has done its own takes from the others'. The caller takes pieces too, and waits at the
//! end only for those threads that have begun one: a thread that the system runs late costs speed, never progress.

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

/// How long a thread looks for work before it sleeps. Longer than what lies between two operations of a step.
const SPIN: Duration = Duration::from_micros(50);
/// Looks at the gate between two looks at the clock.
const LOOKS: usize = 128;
/// Looks at who is inside before the caller lets others run: they may need this very core.
const PATIENCE: usize = 1 << 14;

/// Set in the gate while threads may enter.
const OPEN: u64 = 1 << 31;
/// One thread inside, in the lowest bits of the gate.
const INSIDE: u64 = 1;
/// One more work done, in the highest bits.
const EPOCH: u64 = 1 << 32;

/// Threads that work together: its caller and some of its own.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose work runs.
    caller: Mutex<()>,
    helpers: Vec<Helper>,
}

struct Helper {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// What all threads look at.
struct Shared {
    /// Which work it is, whether threads may enter it, and how many are inside.
    gate: Line<AtomicU64>,
    /// The next piece of each thread's range. The caller is the first.
    next: Vec<Line<AtomicUsize>>,
    work: Line<UnsafeCell<Option<Work>>>,
    /// Set where a helper's piece panicked; of the current work alone.
    panicked: AtomicBool,
    over: AtomicBool,
}

/// Something on cache lines of its own: the pair that processors fetch together.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Work {
    piece: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}

impl Work {
    /// The pieces that are `thread`'s of `threads`.
    fn range(&self, thread: usize, threads: usize) -> Range<usize> {
        self.pieces * thread / threads..self.pieces * (thread + 1) / threads
    }
}

// SAFETY: `work` is written by the caller alone, while the gate is closed and nobody is inside, and read by threads
// that have entered; the gate orders the two. The pointer in it outlives every thread inside (see `Pool::run`).
unsafe impl Sync for Shared {}
// SAFETY: the same; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

static THREADS: OnceLock<NonZeroUsize> = OnceLock::new();

/// Says how many threads operations use, before the first of them runs. False if that was decided already.
pub fn set_threads(count: NonZeroUsize) -> bool {
    THREADS.set(count).is_ok()
}

/// How many threads operations use: as many as this process may run on by its affinity and its cgroup's quota.
pub fn threads() -> usize {
    let may = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    THREADS.get_or_init(may).get()
}

/// Threads of this process, made when they are first needed.
pub fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(threads()))
}

impl Pool {
    /// `threads` in all. Where the system gives fewer, those do the work.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: Line::default(),
            next: (0..threads.max(1)).map(|_| Line::default()).collect(),
            work: Line::default(),
            panicked: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let helper = |number| {
            let asleep = Arc::new(AtomicBool::new(false));
            let (shared, flag) = (Arc::clone(&shared), Arc::clone(&asleep));
            let named = thread::Builder::new().name(format!("ops {number}"));
            let spawned = named.spawn(move || help(number, &shared, &flag)).ok()?;
            Some(Helper { thread: spawned.thread().clone(), asleep })
        };
        let helpers = (1..threads).map_while(helper).collect();
        Self { shared, caller: Mutex::new(()), helpers }
    }

    /// Its threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `piece` once with every number below `pieces`, on any thread, in any order.
    ///
    /// If the pool is busy, with another caller's work or because a piece calls this, the caller does it all.
    pub fn run(&self, pieces: usize, piece: impl Fn(usize) + Sync) {
        let lock = match self.caller.try_lock() {
            Ok(lock) => lock,
            // A piece panicked while its caller held the lock, and the work was closed all the same.
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..pieces).for_each(piece),
        };
        if pieces <= 1 || self.helpers.is_empty() {
            return (0..pieces).for_each(piece);
        }
        let shared = &*self.shared;
        let piece: &(dyn Fn(usize) + Sync) = &piece;
        // SAFETY: only the lifetime changes. Threads use the pointer inside the gate alone, and `Closing` leaves this
        // function, by whatever way, only when the gate is closed and nobody is inside.
        let piece: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(piece) };
        let work = Work { piece, pieces };
        // SAFETY: this caller has the lock, and the one before it left the gate closed and empty.
        unsafe { *shared.work.0.get() = Some(work) };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(work.range(thread, shared.next.len()).start, Ordering::Relaxed);
        }
        // A caller whose own piece panicked as well unwound before it read this.
        shared.panicked.store(false, Ordering::Relaxed);
        let closing = Closing(shared);
        let epoch = shared.gate.0.load(Ordering::Relaxed) & !(EPOCH - 1);
        // Sequentially consistent, as is the other side in `sleep`: either a thread that goes to sleep sees the open
        // gate, or this one sees it asleep.
        shared.gate.0.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for helper in self.helpers.iter().take(pieces - 1) {
            if helper.asleep.load(Ordering::SeqCst) {
                helper.thread.unpark();
            }
        }
        // SAFETY: the pointer is to `piece`, above.
        unsafe { shared.take_pieces(0, work) };
        drop(closing);
        // Read under the lock: the next caller clears it.
        let panicked = shared.panicked.load(Ordering::Relaxed);
        drop(lock);
        if panicked {
            panic!("an operation panicked on another thread; its message is above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for helper in &self.helpers {
            helper.thread.unpark();
        }
    }
}

/// Closes the gate and waits until nobody is inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate.0;
        gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0usize;
        while gate.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            looks += 1;
            if looks.is_multiple_of(PATIENCE) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl Shared {
    /// Does what is left of `work`: first of the range of `thread`, then of the others.
    ///
    /// # Safety
    /// The pointer in `work` is good.
    unsafe fn take_pieces(&self, thread: usize, work: Work) {
        // SAFETY: promised by the caller.
        let piece = unsafe { &*work.piece };
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let end = work.range(owner, threads).end;
            loop {
                let index = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                piece(index);
            }
        }
    }

    /// Whether there is work at `gate` other than that of the epoch `done`.
    fn is_new(gate: u64, done: u64) -> bool {
        gate & OPEN != 0 && gate / EPOCH != done
    }

    /// Takes part in what runs at `seen`. False if the gate has changed, and this thread did not enter.
    fn take_part(&self, thread: usize, seen: u64) -> bool {
        let entered =
            self.gate.0.compare_exchange(seen, seen + INSIDE, Ordering::Acquire, Ordering::Relaxed);
        if entered.is_err() {
            return false;
        }
        // SAFETY: this thread is inside the gate, so nobody writes the cell.
        if let Some(work) = unsafe { *self.work.0.get() } {
            // SAFETY: the caller keeps what the pointer is to until this thread has left.
            let pieces = AssertUnwindSafe(|| unsafe { self.take_pieces(thread, work) });
            if panic::catch_unwind(pieces).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        self.gate.0.fetch_sub(INSIDE, Ordering::Release);
        true
    }
}

/// A slice cut into pieces of equal length (the last may be shorter) that threads write at the same time.
pub struct Pieces<'a, T> {
    start: *mut T,
    len: usize,
    piece: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for exclusive pieces of a slice, which may be sent if their elements may.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    /// Cuts `slice` into pieces of `piece` elements.
    pub fn new(slice: &'a mut [T], piece: usize) -> Self {
        let (start, len) = (slice.as_mut_ptr(), slice.len());
        Self { start, len, piece: piece.max(1), slice: PhantomData }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len.div_ceil(self.piece)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Piece `number`.
    ///
    /// # Safety
    /// Nobody else holds it.
    #[allow(clippy::mut_from_ref, reason = "the caller promises what the borrow cannot say")]
    pub unsafe fn piece(&self, number: usize) -> &mut [T] {
        let first = number * self.piece;
        assert!(first < self.len, "there is such a piece");
        let len = self.piece.min(self.len - first);
        // SAFETY: within the slice that this borrows mutably, and nobody else's by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// A matrix in rows, parts of whose rows threads write at the same time.
pub struct Grid<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for exclusive parts of a slice of numbers.
unsafe impl Sync for Grid<'_> {}

impl<'a> Grid<'a> {
    /// `matrix [rows, columns]`
    pub fn new(matrix: &'a mut [f32], columns: usize) -> Self {
        let (start, len) = (matrix.as_mut_ptr(), matrix.len());
        Self { start, rows: len / columns.max(1), columns, matrix: PhantomData }
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// Nobody else holds any of them.
    #[allow(clippy::mut_from_ref, reason = "the caller promises what the borrow cannot say")]
    pub unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        // SAFETY: within the matrix that this borrows mutably, and nobody else's by the caller's promise.
        unsafe {
            let start = self.start.add(row * self.columns + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}

/// What each thread of a pool does.
fn help(thread: usize, shared: &Shared, asleep: &AtomicBool) {
    let mut idle_since = Instant::now();
    let mut done = 0;
    while !shared.over.load(Ordering::Relaxed) {
        for _ in 0..LOOKS {
            let seen = shared.gate.0.load(Ordering::Relaxed);
            if Shared::is_new(seen, done) && shared.take_part(thread, seen) {
                done = seen / EPOCH;
                idle_since = Instant::now();
            }
            std::hint::spin_loop();
        }
        if idle_since.elapsed() >= SPIN {
            sleep(shared, asleep, done);
            idle_since = Instant::now();
        }
    }
}

/// Sleeps until there is work that this thread has not done.
fn sleep(shared: &Shared, asleep: &AtomicBool, done: u64) {
    asleep.store(true, Ordering::SeqCst);
    let is_new = || Shared::is_new(shared.gate.0.load(Ordering::SeqCst), done);
    while !is_new() && !shared.over.load(Ordering::SeqCst) {
        thread::park();
    }
    asleep.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each piece was done.
    fn counts(pool: &Pool, pieces: usize) -> Vec<usize> {
        let counts: Vec<_> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        pool.run(pieces, |piece| {
            counts[piece].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_piece_is_done_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for pieces in (0..40).chain([1000]) {
                assert_eq!(counts(&pool, pieces), vec![1; pieces], "{threads} threads");
            }
            // Again and again at once, and after all have gone to sleep.
            for _ in 0..2_000 {
                assert_eq!(counts(&pool, 5), [1; 5]);
            }
            while pool.helpers.iter().any(|helper| !helper.asleep.load(Ordering::SeqCst)) {
                thread::yield_now();
            }
            assert_eq!(counts(&pool, 100), [1; 100]);
        }
    }

    #[test]
    fn all_threads_take_part() {
        let pool = Pool::new(3);
        let barrier = std::sync::Barrier::new(3);
        // Nobody gets past this alone.
        pool.run(3, |_| {
            barrier.wait();
        });
    }

    #[test]
    fn callers_at_once_and_calls_from_within_are_served() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        assert_eq!(counts(&pool, 9), [1; 9]);
                    }
                });
            }
        });
        pool.run(4, |_| assert_eq!(counts(&pool, 5), [1; 5]));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_whole() {
        let pool = Pool::new(3);
        for bad in 0..6 {
            let work = || pool.run(6, |piece| assert_ne!(piece, bad, "as it should"));
            assert!(panic::catch_unwind(AssertUnwindSafe(work)).is_err(), "piece {bad}");
            assert_eq!(counts(&pool, 8), [1; 8]);
        }
    }

    #[test]
    fn a_panic_of_caller_and_helper_at_once_does_not_reach_the_next_caller() {
        let pool = Pool::new(2);
        let both = std::sync::Barrier::new(2);
        let work = || {
            pool.run(2, |piece| {
                both.wait();
                panic!("piece {piece} panics as it should");
            });
        };
        assert!(panic::catch_unwind(AssertUnwindSafe(work)).is_err());
        assert_eq!(counts(&pool, 8), [1; 8]);
    }

    #[test]
    fn threads_end_with_their_pool() {
        let pool = Pool::new(4);
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        while shared.upgrade().is_some() {
            thread::yield_now();
        }
    }
}
