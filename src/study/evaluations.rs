//! Variants that were asked the same, side by side, as `eval --json` prints them: `candlepower.evaluations/1`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::quality::tasks::LmEvalResults;
use crate::results;
use crate::results::recovered::Recovered;

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.evaluations/1")]
    V1,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Evaluations {
    /// The version of this document.
    pub schema: Version,
    /// The results of each variant in lm_eval's layout, the base first.
    pub variants: Vec<LmEvalResults>,
    /// Every other variant against the base.
    pub recovery: Vec<Recovered>,
}

impl Evaluations {
    /// The document of these.
    pub fn new(variants: Vec<LmEvalResults>, recovery: Vec<Recovered>) -> Self {
        Self {
            schema: Version::V1,
            variants,
            recovery,
        }
    }
}

/// Every schema that the program has, by the name of what it describes.
pub fn schemas() -> Value {
    let mut all = results::schemas();
    all["candlepower.evaluation/1"] = schemars::schema_for!(LmEvalResults).to_value();
    all["candlepower.evaluations/1"] = schemars::schema_for!(Evaluations).to_value();
    all
}
