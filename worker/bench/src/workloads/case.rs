//! A case: a workload with all its parameters, on one model.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use stoker_engine::model::Quantization;

use crate::{
    Error,
    models::{Format, Target},
};

/// A workload with all its parameters, on one model. Sent to the process that measures it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Name of the workload.
    pub(crate) workload: String,
    /// Name of the model in rows.
    pub(crate) model: String,
    /// Value of `--model`.
    pub(crate) source: String,
    /// Name of the case in rows.
    pub(crate) scenario: String,
    /// Format of the model.
    pub(crate) format: Format,
    /// Value of `--quantize`.
    pub(crate) quantize: String,
    /// Concurrent sequences.
    pub(crate) batch: usize,
    /// Average context length of a sequence while it decodes.
    pub(crate) context: usize,
    /// The parameters that only the workload knows.
    pub(super) parameters: Value,
}

impl Case {
    /// Returns a case of one sequence.
    pub(super) fn new(
        workload: &str,
        scenario: &str,
        target: &Target,
        quantize: Quantization,
        parameters: &impl Serialize,
    ) -> Result<Self, Error> {
        let parameters = serde_json::to_value(parameters);
        Ok(Self {
            workload: workload.into(),
            model: target.name.clone(),
            source: target.source.clone(),
            scenario: scenario.into(),
            format: target.format,
            quantize: quantize.name().into(),
            batch: 1,
            context: 0,
            parameters: parameters.map_err(|error| Error::Failed(error.to_string()))?,
        })
    }

    /// Returns the parameters of the workload.
    pub(super) fn parameters<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(self.parameters.clone())
            .map_err(|error| Error::Usage(format!("standard input is not a bench job: {error}")))
    }
}
