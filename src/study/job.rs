//! What a plan comes to: variants of models, and the points of each.

use std::sync::Arc;

use super::base::BaseFile;
use super::facts;
use super::plan::{EngineKind, Plan};
use super::quality::{self, ScoredText};
use super::questions::Questions;
use super::run::Stage;
use super::runner::activation_dtype;
use crate::error::Result;
use crate::kernels::Device;
use crate::measure::trial::StopReason;
use crate::model::Model;
use crate::quant::Samples;
use crate::results::Environment;
use crate::results::record::{
    Body, Cell, Failure, Key, Loaded, QualityTask, Record, Speed, Subject, TaskQuestion,
};
use crate::scheme::{DType, KvFormat, Variant};

/// One variant of one model.
pub(super) struct Job<'a> {
    pub(super) model: &'a Model,
    pub(super) variant: &'a Variant,
    pub(super) act: DType,
    pub(super) kv: KvFormat,
    pub(super) subject: Subject,
    pub(super) text: Option<Arc<ScoredText>>,
    pub(super) questions: Option<Arc<Questions>>,
    /// Where the predictions of the model's base are kept, if variants are compared with it.
    pub(super) base: Option<(String, BaseFile)>,
    pub(super) is_base: bool,
    pub(super) samples: Option<Arc<Samples>>,
}

/// One point of a job.
#[derive(Clone)]
pub(super) enum Point {
    Quality(QualityTask),
    Task(TaskQuestion),
    Speed(Cell),
}

impl Point {
    /// What is being done while it is measured.
    pub(super) fn stage(&self) -> Stage {
        match self {
            Self::Quality(_) => Stage::Quality,
            Self::Task(task) => Stage::Task(task.name.clone()),
            Self::Speed(cell) => Stage::Speed(*cell),
        }
    }
}

impl Job<'_> {
    /// What is to be measured of it.
    pub(super) fn points(&self, plan: &Plan) -> Vec<Point> {
        let quality = self.task().map(Point::Quality);
        let questions = self.questions.iter().flat_map(|questions| questions.each());
        quality
            .into_iter()
            .chain(questions.cloned().map(Point::Task))
            .chain(plan.cells.iter().map(|&cell| Point::Speed(cell)))
            .collect()
    }

    /// The addresses of its points.
    pub(super) fn keys(&self, plan: &Plan) -> Vec<Key> {
        let points = self.points(plan).into_iter();
        points
            .map(|point| self.failed(&point, None, String::new()).key)
            .collect()
    }

    /// What is asked of the text, if there is one.
    fn task(&self) -> Option<QualityTask> {
        let mut task = self.text.as_ref()?.task.clone();
        if !self.is_base {
            task.base = self
                .base
                .as_ref()
                .map(|(variant, file)| file.named(variant));
        }
        Some(task)
    }

    /// A record that says why a point has no figures.
    pub(super) fn failed(&self, point: &Point, loaded: Option<Loaded>, reason: String) -> Record {
        let failure = Failure { reason };
        let body = match point.clone() {
            Point::Quality(task) => Body::Quality {
                task,
                outcome: Err(failure),
            },
            Point::Task(task) => Body::Task {
                task,
                outcome: Err(failure),
            },
            Point::Speed(cell) => Body::Speed {
                cell,
                outcome: Err(failure),
            },
        };
        Record::new(self.subject.clone(), loaded, body)
    }
}

/// Says that cells on record have fewer trials than `plan` wants; `None` if all have enough. One that a limit on time
/// cut short would have no more if it were measured anew under such a limit, and one that heat did was told of then.
pub(super) fn too_few_trials(plan: &Plan, records: &[Option<Record>]) -> Option<String> {
    let wanted = plan.rule.min_trials;
    let limited = |speed: &Speed| {
        let ended = |by: StopReason| speed.stop_reason.as_deref() == Some(by.name());
        plan.rule.max_time.is_some() && ended(StopReason::TimeLimit) || ended(StopReason::Throttled)
    };
    let trials = records
        .iter()
        .flatten()
        .filter_map(|record| match &record.body {
            Body::Speed {
                outcome: Ok(speed), ..
            } if !limited(speed) => Some(speed.trials.len()),
            _ => None,
        });
    let fewest = trials.filter(|&trials| trials < wanted).min()?;
    Some(format!(
        "{fewest} of {wanted} trials, on record; --force measures anew"
    ))
}

/// What a plan comes to, model by model, without reading any weight.
///
/// # Errors
/// If a text, a task or a variant cannot be had.
pub(super) fn jobs<'a>(
    plan: &'a Plan,
    device: &Device,
    environment: &Environment,
    models: &'a [Model],
) -> Result<Vec<Job<'a>>> {
    let device_name = environment.device.name.clone().unwrap_or_default();
    let mut jobs = Vec::new();
    for model in models {
        let act = activation_dtype(plan.act, device, model);
        let mut identity = facts::model(model)?;
        if models
            .iter()
            .filter(|other| other.name == model.name)
            .count()
            > 1
        {
            // Two folders may have one name; what tells them apart is their content.
            let short = identity
                .digest
                .rsplit(':')
                .next()
                .map_or("", |hash| &hash[..6]);
            identity.name = format!("{} {short}", model.name);
        }
        let text = match &plan.quality {
            Some(quality) if plan.engine == EngineKind::Candlepower => {
                Some(Arc::new(quality::prepare(quality, model)?))
            }
            _ => None,
        };
        let questions = match &plan.tasks {
            Some(tasks) => Some(Arc::new(Questions::prepare(tasks, model)?)),
            None => None,
        };
        let scored = text.as_ref().map(|text| text.scored_ids());
        let samples = plan
            .quantising
            .samples(model, &plan.variants, scored.as_deref())?;
        let samples = samples.map(Arc::new);
        let variants = plan.variants.iter();
        let variants = variants.flat_map(|variant| plan.kv.iter().map(move |&kv| (variant, kv)));
        let several = plan.variants.len() * plan.kv.len() > 1;
        let mut base: Option<(String, BaseFile)> = None;
        for (number, (variant, kv)) in variants.enumerate() {
            let (name, scheme) = match plan.engine {
                EngineKind::CandleGguf => facts::file_scheme(model, variant)?,
                _ => {
                    let scheme = facts::scheme(model, variant, samples.as_deref())?;
                    (variant.name.clone(), scheme)
                }
            };
            let subject = Subject {
                model: identity.clone(),
                variant: name,
                scheme,
                activation_dtype: act.name().to_owned(),
                kv_cache: kv.codes().map(|_| kv.name().to_owned()),
                engine: plan.engine_on(device),
                device: device_name.clone(),
                tool_version: environment.tool_version.clone(),
            };
            let kept = plan.quality.as_ref().and_then(|q| q.base.as_ref());
            if let (0, true, Some(kept), Some(text)) = (number, several, kept, &text) {
                let vocab = model.config.vocab;
                let file = BaseFile::of(kept, &subject, &text.task, vocab, &text.layout);
                base = Some((subject.variant.clone(), file));
            }
            jobs.push(Job {
                model,
                variant,
                act,
                kv,
                subject,
                text: text.clone(),
                questions: questions.clone(),
                base: base.clone(),
                is_base: number == 0,
                samples: samples.clone(),
            });
        }
    }
    Ok(jobs)
}
