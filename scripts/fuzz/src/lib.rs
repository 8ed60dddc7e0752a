//! What the targets share: a limit on memory, panics that the code catches, and texts to tokenise.

use std::{
    panic, process,
    sync::{Mutex, PoisonError},
    thread,
};

use peak_alloc::PeakAlloc;
use stoker_engine::tokenizer::{SpecialTokens, Tokenizer};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The last panic, since the hook does not know whether it is caught.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs `work`, and panics if it takes more than `limit` bytes of memory at a time.
///
/// libFuzzer's own limits see memory only once it is written to, and single allocations only with a
/// sanitizer.
pub fn bounded<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    let memory = MEMORY.peak_usage().saturating_sub(before);
    assert!(memory <= limit, "{memory} bytes of memory; at most {limit}");
    result
}

/// Lets the code under test catch panics, for targets in which a library may panic. By default the
/// fuzzer ends at every panic. Called before the first input; inputs then run in [`uncaught`].
pub fn keep_panics() {
    panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

/// Runs `work`, and reports a panic that leaves it.
///
/// On a thread of its own: the tokenizer library keeps an entry for each vocabulary that a thread
/// has ever used, which over hundreds of thousands of inputs would count as the memory of one.
pub fn uncaught(work: impl FnOnce() + Send) {
    if thread::scope(|scope| scope.spawn(work).join()).is_err() {
        eprintln!("{}", PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        process::abort();
    }
}

/// Texts with spaces, bytes, control characters, tokens of the seeds and runs of letters.
const TEXTS: [&str; 5] = [
    "a <s> \0\u{e9} a",
    "abababaaab ababa",
    "<|a|>1234\r\n  'S",
    "\u{2581}a\u{390}e\u{301}\u{1f600} \t the<0x0A>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// Uses a tokenizer. It refuses a text, or returns ids that it can decode and not fewer than the
/// lower bound by which long prompts are refused.
pub fn check_tokenizer(tokenizer: &Tokenizer) {
    for text in TEXTS {
        for (add, parse) in [(true, true), (false, true), (true, false)] {
            let Ok(ids) = tokenizer.encode_prompt(text, SpecialTokens { add, parse }) else {
                continue;
            };
            let minimum = tokenizer.min_token_count(text.len());
            assert!(ids.len() >= minimum, "{text:?} has {} tokens, not {minimum}", ids.len());
            for skip_special in [true, false] {
                tokenizer.decode(&ids, skip_special);
            }
        }
    }
    // Ids beyond the vocabulary add nothing.
    assert_eq!(tokenizer.decode(&[u32::MAX], false), "");
    for id in 0..tokenizer.vocab_size().min(1_000) as u32 {
        let _ = (tokenizer.token(id), tokenizer.token_bytes(id), tokenizer.is_special(id));
    }
}

/// Asserts that an error names a file, in a text of bounded length.
pub fn check_error(message: &str, file: &str) {
    assert!(message.starts_with(file), "{message:?} does not name {file}");
    assert!(message.len() < 2_000, "a message of {} bytes: {message}", message.len());
}
