//! Turns the command line into jobs.

use stoker_loader::ModelSource;
use stoker_ops::fallback::GpuFeature;

use super::{BenchArgs, job::Job};
use crate::{
    Error,
    models::{Format, Target},
    workloads::Columns,
};

/// The jobs to run, and how their rows are shown.
pub(super) struct Plan {
    /// The jobs, in order.
    pub(super) jobs: Vec<Job>,
    /// Columns that the table has in addition.
    pub(super) columns: Columns,
    /// Whether rows of a case are repetitions, of which the median counts.
    pub(super) repeats: bool,
}

/// Rejects combinations of flags that clap cannot check.
pub(super) fn check(args: &BenchArgs) -> Result<(), Error> {
    let ablation = args.options.ablation.then_some("--ablation");
    let workloads = args.workloads.all();
    let mut selecting = workloads.iter().filter_map(|one| one.selected_by()).chain(ablation);
    if let (Some(one), Some(other)) = (selecting.next(), selecting.next()) {
        return Err(Error::Usage(format!(
            "{one} and {other} measure different things: give one of them"
        )));
    }
    // Without --model, workloads that need text use the bundled model.
    let model = args.model.as_ref().unwrap_or(&ModelSource::Bundled);
    if args.workloads.selected().needs_text() && !args.format.is_empty() {
        let flag = args.workloads.selected().selected_by().unwrap_or_default();
        return Err(Error::Usage(format!(
            "--format does not apply to {flag}: its model is generated in one format; omit it"
        )));
    }
    workloads.iter().try_for_each(|workload| workload.check(&args.options, model))
}

/// Returns what to run on the models that `targets` returns: predictable ones, or else in these
/// formats.
pub(super) fn plan(
    args: &BenchArgs,
    targets: impl Fn(bool, &[Format]) -> Result<Vec<Target>, Error>,
) -> Result<Plan, Error> {
    let workload = args.workloads.selected();
    let formats = |default| if args.format.is_empty() { default } else { &args.format[..] };
    let (mut cases, mut columns) = (Vec::new(), Columns::OverPreviousAndFirst);
    if args.options.ablation {
        for workload in args.workloads.all() {
            let formats = formats(workload.formats(&args.options));
            let targets = targets(workload.needs_text(), formats)?;
            cases.extend(workload.ablation(&args.options, &targets)?);
        }
    } else {
        let formats = formats(workload.formats(&args.options));
        let targets = targets(workload.needs_text(), formats)?;
        cases = workload.cases(&args.options, &targets)?;
        columns = workload.columns(&args.options);
    }
    let runs = u64::from(args.options.runs.unwrap_or_else(|| workload.runs(&args.options)));
    let features = args.device.disable_gpu_feature.iter();
    let features: Vec<_> = features.map(GpuFeature::to_string).collect();
    let device = args.device.device.to_string();
    let jobs = cases.into_iter().flat_map(|case| {
        let (device, features) = (device.clone(), features.clone());
        (1..=runs).map(move |run| Job {
            case: case.clone(),
            device: device.clone(),
            disable_gpu_feature: features.clone(),
            run,
        })
    });
    Ok(Plan { jobs: jobs.collect(), columns, repeats: workload.repeats() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;
    use crate::models::Shape;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn jobs(flags: &[&str]) -> Result<Vec<Job>, String> {
        let args = Cli::try_parse_from([&["bench"], flags].concat()).unwrap().args;
        let targets = |is_bundled, formats: &[Format]| {
            let target = |format: &Format| Target {
                name: "tiny".into(),
                source: "/tiny".into(),
                format: *format,
                config: Shape::Tiny.config(),
                is_bundled,
            };
            Ok(formats.iter().map(target).collect())
        };
        let planned = check(&args).and_then(|()| plan(&args, targets));
        planned.map(|plan| plan.jobs).map_err(|error| error.to_string())
    }

    /// Scenario, format and run of each job.
    fn rows(jobs: &[Job]) -> Vec<(&str, Format, u64)> {
        jobs.iter().map(|job| (job.case.scenario.as_str(), job.case.format, job.run)).collect()
    }

    #[test]
    fn every_scenario_is_measured_in_every_format_three_times() {
        let jobs = jobs(&[]).unwrap();
        let formats = Format::ALL.into_iter();
        let runs = formats.flat_map(|format| (1..=3).map(move |run| (format, run)));
        let expected: Vec<_> = ["short", "medium", "code", "long"]
            .into_iter()
            .flat_map(|name| runs.clone().map(move |(format, run)| (name, format, run)))
            .collect();
        assert_eq!(rows(&jobs), expected);
    }

    #[test]
    fn named_scenarios_run_in_their_order() {
        let flags = ["--scenario", "code,short", "--runs", "2", "--format", "gguf"];
        let gguf = Format::Gguf;
        let expected =
            [("code", gguf, 1), ("code", gguf, 2), ("short", gguf, 1), ("short", gguf, 2)];
        assert_eq!(rows(&jobs(&flags).unwrap()), expected);
    }

    #[test]
    fn a_sweep_doubles_the_batch_at_a_constant_context() {
        let jobs = jobs(&["--sweep", "batch"]).unwrap();
        let batches: Vec<_> = jobs.iter().map(|job| job.case.batch).collect();
        assert_eq!(batches, [1, 2, 4, 8, 16, 32, 64]);
        assert!(jobs.iter().all(|job| job.case.context == 512));
    }

    #[test]
    fn an_ablation_goes_from_unfused_operations_to_speculation() {
        let jobs = jobs(&["--ablation"]).unwrap();
        let rows: Vec<_> =
            jobs.iter().map(|job| (job.case.scenario.as_str(), job.case.batch)).collect();
        let steps = [("naive f32", 1), ("fused f32", 1), ("int8", 1), ("int8 batch 8", 8)];
        assert_eq!(rows, [&steps[..], &[("int8 drafted", 1)]].concat());
        assert_eq!(jobs[1].case.quantize, "none");
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused_with_the_limit() {
        for (flags, parts) in [
            (&["--batch", "2", "--context", "2048"][..], ["--context 2048", "2112", "above 2048"]),
            (&["--soak", "1m", "--context", "2000"], ["--context 2000", "3000", "above 2048"]),
            (&["--batch", "4096", "--context", "16"], ["--context 16", "--batch 4096", "raise it"]),
            (&["--context", "64"], ["--context", "--batch", "scenarios"]),
            (&["--shared-prefix", "2040"], ["--shared-prefix 2040", "2064", "above 2048"]),
            (&["--long-prompt", "2048"], ["--long-prompt 2048", "2048", "context of tiny"]),
            (
                &["--long-prompt", "2000", "--context", "1500"],
                ["--context 1500", "2128", "lower it"],
            ),
            (&["--ablation", "--speculate", "ngram"], ["--speculate", "--ablation", "give one"]),
            (&["--soak", "2s", "--speculate", "ngram"], ["--speculate", "--soak", "give one"]),
            (&["--soak", "5ms"], ["--soak", "5ms", "1s"]),
        ] {
            let error = jobs(flags).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        }
    }
}
