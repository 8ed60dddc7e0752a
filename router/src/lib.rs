//! The router: balances Generate calls over workers.
