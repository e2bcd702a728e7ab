//! The device and the machine around it, as `info --json` prints them: `candlepower.info/1`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::{Ceiling, Ceilings, Environment, LeftOut};

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.info/1")]
    V1,
}

/// What the sensors of a GPU say, or why nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Gpu {
    /// Names and readable values.
    Known(Vec<(String, String)>),
    /// None.
    Unknown {
        /// Why.
        unavailable: String,
    },
}

/// Everything that there is to know before anything is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Info {
    /// The version of this document.
    pub schema: Version,
    /// The machine, the program and the moment; with the ceilings as a study keeps them.
    pub environment: Environment,
    /// The GPU.
    pub gpu: Gpu,
    /// What the device can do at best; empty if that was not to be measured.
    pub ceilings: Vec<Ceiling>,
    /// Ceilings that could not be measured.
    pub ceilings_left_out: Vec<LeftOut>,
    /// Models that are known by name alone.
    pub presets: Vec<String>,
}

impl Info {
    /// The document; `ceilings` are `None` if they were not to be measured.
    pub fn new(
        mut environment: Environment,
        gpu: Result<Vec<(String, String)>, String>,
        ceilings: Option<Ceilings>,
        presets: Vec<String>,
    ) -> Self {
        environment.ceilings = ceilings;
        let Ceilings {
            measured, left_out, ..
        } = environment.ceilings.clone().unwrap_or_default();
        Self {
            schema: Version::V1,
            environment,
            gpu: match gpu {
                Ok(facts) => Gpu::Known(facts),
                Err(unavailable) => Gpu::Unknown { unavailable },
            },
            ceilings: measured,
            ceilings_left_out: left_out,
            presets,
        }
    }
}
