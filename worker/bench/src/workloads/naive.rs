//! One sequence, decoded with unfused operations and random weights of the model's shape: the first
//! row of `--ablation`.

use clap::Args;
use stoker_engine::model::Quantization;

use super::{Case, Options, Workload};
use crate::{
    Error,
    harness::{self, Machine, Measurement},
    models::Target,
};

const NAME: &str = "naive";

/// It has no flags.
#[derive(Debug, Clone, Args)]
pub(super) struct Naive {}

impl Workload for Naive {
    fn name(&self) -> &'static str {
        NAME
    }

    fn selected_by(&self) -> Option<&'static str> {
        None
    }

    fn cases(&self, _: &Options, _: &[Target]) -> Result<Vec<Case>, Error> {
        Ok(Vec::new())
    }

    fn ablation(&self, options: &Options, targets: &[Target]) -> Result<Vec<Case>, Error> {
        let case = |target| {
            let case = Case::new(NAME, "naive f32", target, Quantization::None, &())?;
            Ok(Case { context: options.context(), ..case })
        };
        targets.iter().map(case).collect()
    }

    fn measure(&self, case: &Case, machine: &mut Machine) -> Result<Vec<Measurement>, Error> {
        let (device, config) = (machine.device.clone(), machine.config().clone());
        let (load, measurement) =
            harness::naive(&config, case.context, &device, &mut machine.progress)?;
        machine.set_load_time(load);
        Ok(vec![measurement])
    }
}
