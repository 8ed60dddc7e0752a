//! Corpus, tokenizer and trainer of the bundled story model, and its weights.
