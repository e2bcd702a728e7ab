//! Everything that a plan names, opened before anything is measured.

use super::plan::{EngineKind, Plan};
use super::quality;
use super::questions::Questions;
use super::stored::notice;
use crate::error::Result;
use crate::model::Model;

/// Opens everything that `plan` names, reading headers and texts only. Gives what is worth saying about them.
///
/// # Errors
/// What is missing or broken.
pub fn check_inputs(plan: &Plan) -> Result<Vec<String>> {
    let mut notices = Vec::new();
    for spec in &plan.models {
        let model = Model::open(spec)?;
        for variant in &plan.variants {
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
    }
    Ok(notices)
}
