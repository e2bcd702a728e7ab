//! What `study` and `bench` have in common: variants of models, loaded on a device and timed cell by cell.

use clap::Args;

use super::args::{CalibrationFlags, EngineFlags, ModelFlags};
use super::isolation::IsolationFlags;
use super::speed::SpeedFlags;
use super::switches::SwitchFlags;
use crate::error::Result;
use crate::scheme::Variant;
use crate::study::{Plan, default_variants};

#[derive(Args)]
pub(super) struct MeasureFlags {
    #[command(flatten)]
    pub(super) from: ModelFlags,
    #[command(flatten)]
    calibration: CalibrationFlags,
    #[command(flatten)]
    pub(super) device: EngineFlags,
    #[command(flatten)]
    switches: SwitchFlags,
    #[command(flatten)]
    pub(super) speed: SpeedFlags,
    #[command(flatten)]
    pub(super) isolation: IsolationFlags,
}

/// The variants of a model where none are named.
pub(super) struct UsualVariants {
    /// Of a plain checkpoint.
    pub(super) plain: &'static [&'static str],
    /// Of one that is quantised already.
    pub(super) quantised: &'static [&'static str],
}

impl MeasureFlags {
    /// The speed of these variants of these models, without text and tasks.
    ///
    /// # Errors
    /// If flags do not go together, or a model cannot be opened to know its usual variants.
    pub(super) fn plan(
        &self,
        models: &[String],
        variants: &[Variant],
        usual: &UsualVariants,
    ) -> Result<Plan> {
        self.isolation.check()?;
        let models = models
            .iter()
            .map(|source| self.from.spec(source))
            .collect::<Result<Vec<_>>>()?;
        let variants = match variants {
            [] => {
                let engine = self.speed.engine.kind();
                default_variants(&models, engine, usual.plain, usual.quantised)?
            }
            named => named.to_vec(),
        };
        Ok(Plan {
            quantising: self.calibration.quantising(&variants)?,
            models,
            variants,
            cells: self.speed.cells(),
            quality: None,
            tasks: None,
            act: self.device.dtype,
            kv: self.speed.kv.clone(),
            engine: self.speed.engine.kind(),
            switches: self.switches.switches(),
            chunk: self.device.chunk,
            rule: self.speed.rule(),
            turns: self.isolation.turns,
            warm_up: self.speed.warm_up(),
            energy: self.speed.energy(),
            seed: self.speed.seed,
            force: false,
        })
    }
}
