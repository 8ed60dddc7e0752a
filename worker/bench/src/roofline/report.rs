//! The report as a table and as a JSON object.

use std::fmt;

use serde::Serialize;

use super::{Bound, Ceiling, Hardware, MeasuredCase, MeasuredProducts};

/// Ceilings of a model on a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RooflineReport {
    /// Name of the model or its shape.
    pub model: String,
    /// Context length of every sequence.
    pub context: u64,
    /// Rates of the machine.
    pub hardware: Hardware,
    /// One ceiling per weight format and batch.
    pub ceilings: Vec<Ceiling>,
    /// Benchmark results of `--last`, if given.
    pub last: Option<Vec<MeasuredCase>>,
}

impl fmt::Display for RooflineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, context, hardware, ceilings, last } = self;
        let about = if hardware.measured {
            "computed from measured rates"
        } else {
            "computed, not measured"
        };
        writeln!(f, "{model} at a context of {context} on {}: {about}", hardware.name)?;
        writeln!(f, "{} ({})\n", figures(hardware), hardware.source)?;
        if !hardware.products.is_empty() {
            write_products(f, &hardware.products)?;
        }
        writeln!(f, "tokens per second of all sequences")?;
        writeln!(f, "weights  batch     memory    compute    ceiling  bound by")?;
        for ceiling in ceilings {
            let Ceiling { batch, memory_tokens_per_second, tokens_per_second, .. } = ceiling;
            let compute = ceiling.compute_tokens_per_second.map_or_else(|| "-".into(), decimal);
            let note = if ceiling.too_large { " (exceeds its memory)" } else { "" };
            writeln!(
                f,
                "{:7}  {batch:5}  {:>9}  {compute:>9}  {:>9}  {}{note}",
                ceiling.weights.name(),
                decimal(*memory_tokens_per_second),
                decimal(*tokens_per_second),
                bound(ceiling.bound),
            )?;
        }
        match last {
            None => Ok(()),
            Some(cases) => write_last(f, cases),
        }
    }
}

/// Writes what the compute bounds are computed from.
fn write_products(f: &mut fmt::Formatter<'_>, products: &[MeasuredProducts]) -> fmt::Result {
    writeln!(f, "products of 512 rows by 2048 x 5632, billion operations per second")?;
    writeln!(f, "format  instructions   measured       peak  share %")?;
    let billion = |rate: f64| decimal(rate / 1e9);
    for products in products {
        let MeasuredProducts { format, instruction_set, ops_per_second, .. } = products;
        let peak = products.peak_ops_per_second.map_or_else(|| "-".into(), billion);
        let share =
            products.share.map_or_else(|| "-".into(), |share| format!("{:.1}", 100.0 * share));
        let measured = billion(*ops_per_second);
        writeln!(f, "{format:6}  {instruction_set:12}  {measured:>9}  {peak:>9}  {share:>7}")?;
    }
    writeln!(f)
}

fn write_last(f: &mut fmt::Formatter<'_>, cases: &[MeasuredCase]) -> fmt::Result {
    writeln!(f, "\nthe last run, medians")?;
    writeln!(
        f,
        "scenario      format       weights  batch  context   tokens/s    ceiling  share %  bound by"
    )?;
    for case in cases {
        let MeasuredCase { scenario, format, context, tokens_per_second, ceiling, share } = case;
        writeln!(
            f,
            "{scenario:12}  {format:11}  {:7}  {:5}  {context:7}  {:>9}  {:>9}  {:>7.1}  {}",
            ceiling.weights.name(),
            ceiling.batch,
            decimal(*tokens_per_second),
            decimal(ceiling.tokens_per_second),
            100.0 * share,
            bound(ceiling.bound),
        )?;
    }
    Ok(())
}

/// Formats bandwidth and rates in units that suit both GPUs and laptops.
fn figures(hardware: &Hardware) -> String {
    let rate = |name: &str, rate: Option<f64>| match rate {
        None => format!("- in {name}"),
        Some(rate) if rate < 1e12 => format!("{} billion in {name}", decimal(rate / 1e9)),
        Some(rate) => format!("{} trillion in {name}", decimal(rate / 1e12)),
    };
    format!(
        "{} GB/s; operations per second: {}, {}, {}",
        decimal(hardware.bytes_per_second / 1e9),
        rate("f32", hardware.f32_ops_per_second),
        rate("bf16", hardware.bf16_ops_per_second),
        rate("int8", hardware.int8_ops_per_second),
    )
}

fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::Memory => "memory",
        Bound::Compute => "compute",
    }
}

/// Formats a number below 1000 with one decimal, a larger one without.
fn decimal(number: f64) -> String {
    if number < 1000.0 { format!("{number:.1}") } else { format!("{number:.0}") }
}

#[cfg(test)]
mod tests {
    use crate::roofline::{RooflineArgs, cli::HardwareName, compute};

    #[test]
    fn the_table_names_the_figures_and_their_source() {
        let args = RooflineArgs { hardware: HardwareName::H200, ..RooflineArgs::default() };
        let report = compute(&args).map(|report| report.to_string()).unwrap_or_default();
        for part in [
            "tinyllama-1.1b at a context of 512 on NVIDIA H200 SXM: computed, not measured",
            "4800 GB/s; operations per second: 67.0 trillion in f32",
            "NVIDIA H200 Tensor Core GPU Datasheet",
            "weights  batch     memory    compute    ceiling  bound by",
        ] {
            assert!(report.contains(part), "{part:?} is not in\n{report}");
        }
        assert_eq!(report.lines().count(), 5 + 9, "{report}");
    }

    #[test]
    fn a_context_beyond_the_model_is_rejected() {
        let args = RooflineArgs { context: Some(4096), ..RooflineArgs::default() };
        let error = compute(&args).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("--context 4096 is not from 1 to 2048"), "{error}");
    }
}
