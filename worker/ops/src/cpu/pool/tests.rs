use super::*;

/// Returns how often each chunk was run.
fn counts(pool: &Pool, chunks: usize) -> Vec<usize> {
    let counts: Vec<_> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(chunks, |chunk| {
        counts[chunk].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_chunk_is_run_once() {
    for threads in [1, 2, 3, 7] {
        let pool = Pool::new(threads);
        for chunks in (0..40).chain([1000]) {
            assert_eq!(counts(&pool, chunks), vec![1; chunks], "{threads} threads");
        }
        // Repeatedly without a pause, and after all threads have gone to sleep.
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
fn all_threads_run_chunks() {
    let pool = Pool::new(3);
    let barrier = std::sync::Barrier::new(3);
    // Passing the barrier needs all threads.
    pool.run(3, |_| {
        barrier.wait();
    });
}

#[test]
fn concurrent_and_nested_calls_complete() {
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
fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
    let pool = Pool::new(3);
    for bad in 0..6 {
        let job = || pool.run(6, |chunk| assert_ne!(chunk, bad, "a deliberate panic"));
        assert!(panic::catch_unwind(AssertUnwindSafe(job)).is_err(), "chunk {bad}");
        assert_eq!(counts(&pool, 8), [1; 8]);
    }
}

#[test]
fn a_panic_of_caller_and_helper_at_once_does_not_reach_the_next_caller() {
    let pool = Pool::new(2);
    let both = std::sync::Barrier::new(2);
    let job = || {
        pool.run(2, |chunk| {
            both.wait();
            panic!("chunk {chunk} panics deliberately");
        });
    };
    assert!(panic::catch_unwind(AssertUnwindSafe(job)).is_err());
    assert_eq!(counts(&pool, 8), [1; 8]);
}

#[test]
fn threads_end_with_their_pool() {
    let pool = Pool::new(4);
    let state = Arc::downgrade(&pool.state);
    drop(pool);
    while state.upgrade().is_some() {
        thread::yield_now();
    }
}
