//! Numbers in tables.

/// Formats a number of at least 1 with three significant digits or more, a smaller one with three
/// decimals.
pub(crate) fn decimal(number: f64) -> String {
    let digits = match number.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.digits$}")
}
