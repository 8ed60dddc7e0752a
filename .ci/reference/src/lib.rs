//! Work of known size for a compiler: only the dependencies count.
