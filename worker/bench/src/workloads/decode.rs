//! Sequences that decode together: typical lengths (`--scenario`), batches (`--batch`, `--sweep`),
//! and the rows of `--ablation` with fused operations.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use stoker_engine::model::Quantization;

use super::{Case, Columns, Options, Workload, options::check_context};
use crate::{
    Error,
    harness::{self, Machine, Measurement, lengths},
    models::{Format, Target},
};

const NAME: &str = "decode";
/// Runs of each scenario.
const SCENARIO_RUNS: u32 = 3;
const SWEEP_BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const ABLATION_BATCH: usize = 8;
/// Measured tokens of each sequence in a batch, if the context is long enough.
const MEASURED_TOKENS: usize = 64;

/// Its flags.
#[derive(Debug, Clone, Args)]
pub(super) struct Decode {
    /// Scenarios to measure [default: all]
    #[arg(
        long,
        env = "STOKER_BENCH_SCENARIO",
        group = "workload",
        conflicts_with_all = ["batch", "sweep", "context"],
        value_delimiter = ',',
        value_name = "NAME",
        help_heading = "What to measure"
    )]
    scenario: Vec<Scenario>,
}

/// Parameters of a case.
#[derive(Debug, Serialize, Deserialize)]
struct Parameters {
    /// Prompt length of each sequence.
    prompts: Vec<usize>,
    /// Output tokens of each sequence that are measured, at least 2.
    tokens: usize,
}

impl Decode {
    fn measures_scenarios(options: &Options) -> bool {
        options.batch.is_none() && options.sweep.is_none() && !options.ablation
    }
}

impl Workload for Decode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        (!self.scenario.is_empty()).then_some("--scenario")
    }

    fn cases(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let (quantize, context) = (options.quantize, options.context());
        let one = [options.batch_or(1)];
        if Self::measures_scenarios(options) {
            if options.context.is_some() {
                let why = "--context does not apply to scenarios, which have fixed lengths; add \
                           --batch, --sweep or another workload that takes it";
                return Err(Error::Usage(why.into()));
            }
            let all = &Scenario::ALL[..];
            let scenarios = if self.scenario.is_empty() { all } else { &self.scenario };
            let cases = scenarios
                .iter()
                .flat_map(|one| targets.iter().map(|target| scenario(target, *one, quantize)));
            return cases.collect();
        }
        let sizes = if options.sweep.is_some() { &SWEEP_BATCHES[..] } else { &one[..] };
        let cases = targets.iter().flat_map(|target| {
            sizes.iter().map(|size| batch(target, "batch", *size, context, quantize))
        });
        cases.collect()
    }

    fn ablation(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let context = options.context();
        let mut cases = Vec::new();
        for target in targets {
            cases.push(batch(target, "fused f32", 1, context, Quantization::None)?);
            // A quantization without kernels would measure another one under its name.
            if Quantization::ALL.contains(&Quantization::Int8) {
                for (name, size) in [("int8", 1), ("int8 batch 8", ABLATION_BATCH)] {
                    cases.push(batch(target, name, size, context, Quantization::Int8)?);
                }
            }
        }
        Ok(cases)
    }

    fn formats(&self, options: &Options) -> &'static [Format] {
        if Self::measures_scenarios(options) { &Format::ALL } else { &[Format::Gguf] }
    }

    fn runs(&self, options: &Options) -> u32 {
        if Self::measures_scenarios(options) { SCENARIO_RUNS } else { 1 }
    }

    fn columns(&self, options: &Options) -> Columns {
        if options.sweep.is_some() { Columns::OverFirst("x batch 1") } else { Columns::None }
    }

    fn examples(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "4 scenarios x 2 formats x 3 runs, with random weights that are generated once",
                "--csv bench.csv --json bench.json",
            ),
            (
                "One scenario with a given model, only the rows",
                "--model ./model.gguf --scenario short --runs 1 --csv - > short.csv",
            ),
            ("Throughput by batch size", "--sweep batch"),
        ]
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let Parameters { prompts, tokens } = case.parameters()?;
        let model = machine.load()?;
        Ok(vec![harness::decode(model, &prompts, tokens, &mut machine.progress)?])
    }
}

fn scenario(target: &Target, scenario: Scenario, quantize: Quantization) -> Result<Case, Error> {
    let (prompt, tokens) = scenario.lengths();
    let limit = target.config.context_length;
    if prompt + tokens > limit {
        let fits = |s: &Scenario| s.lengths().0 + s.lengths().1 <= limit;
        let fitting: Vec<_> = Scenario::ALL.into_iter().filter(fits).map(Scenario::name).collect();
        let remedy = match fitting.as_slice() {
            [] => "none of the scenarios fits; use --batch 1 with a small --context".to_owned(),
            some => format!("measure --scenario {}", some.join(",")),
        };
        return Err(Error::Usage(format!(
            "--scenario {} takes {prompt} + {tokens} tokens, above {limit}, the context of {}: {remedy}",
            scenario.name(),
            target.name,
        )));
    }
    let parameters = Parameters { prompts: vec![prompt], tokens };
    let case = Case::new(NAME, scenario.name(), target, quantize, &parameters)?;
    Ok(Case { context: prompt + tokens / 2, ..case })
}

/// Decodes `batch` sequences whose context length is `context` in the middle of the measurement.
fn batch(
    target: &Target,
    scenario: &str,
    batch: usize,
    context: usize,
    quantize: Quantization,
) -> Result<Case, Error> {
    let tokens = MEASURED_TOKENS.min(context / 2);
    check_context(target, context, context + tokens)?;
    let prompts = lengths::prompts(batch, context - tokens / 2).ok_or_else(|| {
        Error::Usage(format!(
            "--context {context} is too short for --batch {batch}: the first sequences would \
             exceed it before the last one starts to decode; raise it or lower --batch"
        ))
    })?;
    let case = Case::new(NAME, scenario, target, quantize, &Parameters { prompts, tokens })?;
    Ok(Case { batch, context, ..case })
}

/// A typical sequence, by the lengths of prompt and response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// A question: 32 tokens in, 64 out
    Short,
    /// A conversation: 256 in, 128 out
    Medium,
    /// A file to continue: 512 in, 256 out
    Code,
    /// A document to summarise: 1536 in, 128 out
    Long,
}

impl Scenario {
    /// All scenarios, ordered by prompt length.
    const ALL: [Self; 4] = [Self::Short, Self::Medium, Self::Code, Self::Long];

    /// Name on the command line and in rows.
    const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Code => "code",
            Self::Long => "long",
        }
    }

    /// Prompt tokens and output tokens.
    const fn lengths(self) -> (usize, usize) {
        match self {
            Self::Short => (32, 64),
            Self::Medium => (256, 128),
            Self::Code => (512, 256),
            Self::Long => (1536, 128),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::models::Shape;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn options() -> Options {
        Cli::parse_from(["bench"]).options
    }

    fn target(format: Format) -> Target {
        Target {
            name: "tiny".into(),
            source: "/tiny".into(),
            format,
            config: Shape::Tiny.config(),
            is_bundled: false,
        }
    }

    #[test]
    fn help_states_the_lengths() {
        for scenario in Scenario::ALL {
            let value = scenario.to_possible_value();
            let help =
                value.and_then(|v| v.get_help().map(ToString::to_string)).unwrap_or_default();
            let numbers = help.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
            let numbers: Vec<_> = numbers.filter_map(|n| n.parse::<usize>().ok()).collect();
            let (prompt, output) = scenario.lengths();
            assert_eq!(numbers, [prompt, output], "{help}");
        }
    }

    #[test]
    fn a_context_that_is_too_long_names_the_scenarios_that_fit() {
        let mut target = target(Format::Gguf);
        target.config.context_length = 400;
        let decode = Decode { scenario: Vec::new() };
        let error = decode.cases(&options(), &[target]).err().map(|error| error.to_string());
        let error = error.unwrap_or_default();
        for part in ["--scenario code takes 512 + 256", "above 400", "--scenario short,medium"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}
