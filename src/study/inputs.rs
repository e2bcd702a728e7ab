//! Everything that a plan names, opened before anything is measured.

use super::facts;
use super::plan::{EngineKind, Plan};
use super::quality;
use super::questions::Questions;
use super::stored::notice;
use crate::error::{Error, Result};
use crate::model::Model;

/// Opens everything that `plan` names, reading headers and texts only. Gives what is worth saying about them.
///
/// # Errors
/// What is missing or broken, and two models that are one.
pub fn check_inputs(plan: &Plan) -> Result<Vec<String>> {
    let mut notices = Vec::new();
    let mut opened: Vec<(&str, Model)> = Vec::new();
    for spec in &plan.models {
        let model = Model::open(spec)?;
        // Points of a copy would be those of the original, since models are known by name and content.
        for (source, other) in opened.iter().filter(|(_, other)| other.name == model.name) {
            if facts::model(other)? == facts::model(&model)? {
                return Err(Error::Usage(format!(
                    "--model: {source} and {} hold the same model: give one of them",
                    spec.source
                )));
            }
        }
        notices.extend(model.remarks.iter().cloned());
        // Blocks that candle runs are made into nothing.
        let made = plan.engine != EngineKind::CandleGguf;
        for variant in plan.variants.iter().filter(|_| made) {
            notices.extend(notice(&model, variant)?);
        }
        let text = match (&plan.quality, plan.engine) {
            (Some(quality), EngineKind::Candlepower) => Some(quality::prepare(quality, &model)?),
            _ => None,
        };
        if let Some(tasks) = &plan.tasks {
            notices.extend(Questions::prepare(tasks, &model)?.notices(tasks));
        }
        let scored = text.as_ref().map(|text| text.scored_ids());
        plan.quantising
            .samples(&model, &plan.variants, scored.as_deref())?;
        opened.push((&spec.source, model));
    }
    Ok(notices)
}
