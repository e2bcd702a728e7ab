//! The main job: every variant of every model is loaded, verified, scored and timed, and each point is on the disk
//! before the next begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bench::{Bench, limits};
use super::facts;
use super::plan::{EngineKind, Plan, positions};
use super::quality::{self, ScoredText};
use super::runner::{Runner, activation_dtype};
use super::stored::notice;
use super::verify::verify;
use crate::engine::{DeviceWeights, Footprint, WeightSource};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::kernels::attention::Attention;
use crate::measure::memory::{HostMemory, PeakMeter};
use crate::measure::{Interrupt, PowerSource, SystemClock};
use crate::model::Model;
use crate::quality::TextFormat;
use crate::quant::{Samples, plain_dtype};
use crate::results::environment::Ceilings;
use crate::results::record::{Body, Cell, Failure, Load, Loaded, QualityTask, Record, Subject};
use crate::results::{Environment, Store};
use crate::scheme::{DType, KvFormat, Variant};
use crate::units::{Bytes, Clock};

/// What is being done.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// A checkpoint is quantised.
    Quantise,
    /// Weights are on their way to the device.
    Load,
    /// Checks that come before any number.
    Verify,
    /// Segments are scored.
    Quality,
    /// A cell is timed.
    Speed(Cell),
}

/// Somebody who wants to know how far a run is.
pub trait Watcher {
    /// A text was read as this format, giving so many tokens.
    fn text(&mut self, model: &str, format: TextFormat, tokens: usize);
    /// Work on a variant: the share of this stage that is done, and the share of the whole run.
    fn progress(&mut self, variant: &str, stage: &Stage, share: f64, overall: f64);
    /// A quantised checkpoint was made, or had been before: where it lies, in words.
    fn quantised(&mut self, variant: &str, what: &str);
    /// A point is on record.
    fn point(&mut self, record: &Record, resumed: bool);
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The records of the plan's points, in its order; fewer if the run was interrupted.
    pub records: Vec<Record>,
    /// Points that failed.
    pub failed: usize,
    /// Whether the user stopped it.
    pub interrupted: bool,
}

impl Outcome {
    /// Takes over what another run came to.
    pub fn add(&mut self, other: Self) {
        self.records.extend(other.records);
        self.failed += other.failed;
        self.interrupted |= other.interrupted;
    }
}

/// Runs `plan` on `device`, keeping records in `store`; points that are there are not measured again.
///
/// # Errors
/// If a model cannot be opened, the plan fits nothing, or the store cannot be written. A failing point is a record.
pub fn run(
    plan: &Plan,
    device: &Device,
    environment: &Environment,
    store: &mut Store,
    interrupt: &Interrupt,
    watcher: &mut dyn Watcher,
) -> Result<Outcome> {
    plan.check()?;
    let models = plan
        .models
        .iter()
        .map(Model::open)
        .collect::<Result<Vec<_>>>()?;
    let jobs = jobs(plan, device, environment, &models)?;
    for job in &jobs {
        if let Some(text) = &job.text {
            watcher.text(&job.model.name, text.format, text.tokens.ids.len());
        }
    }
    let power = match facts::selector(device) {
        Some(selector) => PowerSource::of_gpu(&selector),
        None => PowerSource::none("energy is measured on NVIDIA GPUs only; this run used the CPU"),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let total = jobs
        .iter()
        .map(|job| job.points(plan).len())
        .sum::<usize>()
        .max(1);
    let mut session = Session {
        plan,
        device,
        store,
        interrupt,
        watcher,
        power,
        ceilings: environment.ceilings.as_ref(),
        clock,
        done: 0,
        total,
        outcome: Outcome::default(),
    };
    for job in &jobs {
        match session.job(job) {
            Err(Error::Interrupted) => {
                session.outcome.interrupted = true;
                break;
            }
            other => other?,
        }
    }
    Ok(session.outcome)
}

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
        let scored = text.as_ref().map(|text| text.tokens.ids.as_slice());
        plan.quantising.samples(&model, &plan.variants, scored)?;
    }
    Ok(notices)
}

/// One variant of one model.
struct Job<'a> {
    model: &'a Model,
    variant: &'a Variant,
    act: DType,
    kv: KvFormat,
    subject: Subject,
    text: Option<Arc<ScoredText>>,
    samples: Option<Arc<Samples>>,
}

/// One point of a job.
#[derive(Clone)]
enum Point {
    Quality(QualityTask),
    Speed(Cell),
}

impl Job<'_> {
    fn points(&self, plan: &Plan) -> Vec<Point> {
        let quality = self
            .text
            .iter()
            .map(|text| Point::Quality(text.task.clone()));
        quality
            .chain(plan.cells.iter().map(|&cell| Point::Speed(cell)))
            .collect()
    }

    fn failed(&self, point: &Point, loaded: Option<Loaded>, reason: String) -> Record {
        let failure = Failure { reason };
        let body = match point.clone() {
            Point::Quality(task) => Body::Quality {
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

fn jobs<'a>(
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
        let scored = text.as_ref().map(|text| text.tokens.ids.as_slice());
        let samples = plan.quantising.samples(model, &plan.variants, scored)?;
        let samples = samples.map(Arc::new);
        let variants = plan.variants.iter();
        let variants = variants.flat_map(|variant| plan.kv.iter().map(move |&kv| (variant, kv)));
        for (variant, kv) in variants {
            check_fit(plan, device, model, variant, act, kv)?;
            let (name, scheme) = match plan.engine {
                EngineKind::CandleGguf => facts::file_scheme(model, variant)?,
                _ => {
                    let scales = scale_dtype(model, variant)?;
                    let samples = samples.as_deref();
                    let scheme = facts::scheme(model, variant, scales, samples)?;
                    (variant.name.clone(), scheme)
                }
            };
            let subject = Subject {
                model: identity.clone(),
                variant: name,
                scheme,
                activation_dtype: act.name().to_owned(),
                kv_cache: kv.codes().map(|_| kv.name().to_owned()),
                engine: plan.engine_name(),
                device: device_name.clone(),
                tool_version: environment.tool_version.clone(),
            };
            jobs.push(Job {
                model,
                variant,
                act,
                kv,
                subject,
                text: text.clone(),
                samples: samples.clone(),
            });
        }
    }
    Ok(jobs)
}

/// Refuses what cannot run before any weight is read: heads without a kernel, the model's context, the device's memory.
fn check_fit(
    plan: &Plan,
    device: &Device,
    model: &Model,
    variant: &Variant,
    act: DType,
    kv: KvFormat,
) -> Result<()> {
    let config = &model.config;
    if plan.engine == EngineKind::Candlepower {
        Attention::check_head_dim(device, config.head_dim)?;
    }
    let free = match device.memory() {
        Some((free, _)) => Some(Bytes(free)),
        None => HostMemory::available(),
    };
    for cell in &plan.cells {
        let needed = positions(cell);
        if needed > config.max_positions {
            return Err(Error::Config(format!(
                "depth {} + prompt {} + generate {} = {needed} positions, but the context of {} is {}",
                cell.depth, cell.prompt, cell.generate, model.name, config.max_positions
            )));
        }
        if plan.engine != EngineKind::Candlepower {
            continue;
        }
        let source = WeightSource::of(model, variant)?;
        let limits = limits(plan, device, cell, kv);
        let need = Footprint::predict(config, variant, act, &source, limits)?;
        if let Some(free) = free.filter(|&free| need.total() > free) {
            let most = limits.most_slots(free, |l| {
                Footprint::predict(config, variant, act, &source, l).ok()
            });
            let advice = if most == 0 {
                "no batch fits".to_owned()
            } else {
                format!("--batch {most} is the largest that fits")
            };
            return Err(Error::Config(format!(
                "{} in {variant}, batch {}, {needed} positions needs {} ({} weights, {} cache, {} activations), but {free} \
                 are free: {advice}",
                model.name,
                cell.batch,
                need.total(),
                need.weights,
                need.kv,
                need.activations
            )));
        }
    }
    Ok(())
}

/// The type of a variant's scales: the precision that weights are quantised from, or what a quantiser writes.
fn scale_dtype(model: &Model, variant: &Variant) -> Result<DType> {
    match variant.is_made_on_load() {
        true => Ok(WeightSource::of(model, variant)?.precision),
        false => Ok(plain_dtype(model)),
    }
}

/// Groups by size; where a scale covers a whole row, whatever its length, by that.
fn name_groups(groups: BTreeMap<usize, usize>, wished: Option<usize>) -> BTreeMap<String, usize> {
    match wished {
        None if groups.is_empty() => BTreeMap::new(),
        None => BTreeMap::from([("row".to_owned(), groups.into_values().sum())]),
        Some(_) => groups
            .into_iter()
            .map(|(group, layers)| (group.to_string(), layers))
            .collect(),
    }
}

struct Session<'a> {
    plan: &'a Plan,
    device: &'a Device,
    store: &'a mut Store,
    interrupt: &'a Interrupt,
    watcher: &'a mut dyn Watcher,
    power: PowerSource,
    ceilings: Option<&'a Ceilings>,
    clock: Arc<dyn Clock>,
    done: usize,
    total: usize,
    outcome: Outcome,
}

impl Session<'_> {
    /// Measures whatever of a job is not on record.
    fn job(&mut self, job: &Job<'_>) -> Result<()> {
        let points = job.points(self.plan);
        let known: Vec<Option<Record>> = points
            .iter()
            .map(|point| self.on_record(job, point))
            .collect();
        if known.iter().all(Option::is_some) {
            known
                .into_iter()
                .flatten()
                .for_each(|record| self.note(record, true));
            return Ok(());
        }
        let (mut runner, loaded) = match self.load(job) {
            Ok(pair) => pair,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(
                error
                @ (Error::Usage(_) | Error::Config(_) | Error::Data { .. } | Error::Io { .. }),
            ) => return Err(error),
            Err(error) => {
                return points
                    .iter()
                    .try_for_each(|point| self.keep(job.failed(point, None, error.to_string())));
            }
        };
        let broken = loaded
            .verification
            .checks
            .iter()
            .find(|check| !check.passed);
        let broken = broken.map(|check| format!("not timed: {} ({})", check.name, check.detail));
        for (point, known) in points.iter().zip(known) {
            self.interrupt.check()?;
            if let Some(record) = known {
                self.note(record, true);
                continue;
            }
            let record = match &broken {
                Some(reason) => job.failed(point, Some(loaded.clone()), reason.clone()),
                None => match self.point(job, point, &mut runner) {
                    Ok(body) => Record::new(job.subject.clone(), Some(loaded.clone()), body),
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(error) => job.failed(point, Some(loaded.clone()), error.to_string()),
                },
            };
            self.keep(record)?;
        }
        Ok(())
    }

    /// The record of a point that need not be measured again: failed ones are tried once more.
    fn on_record(&self, job: &Job<'_>, point: &Point) -> Option<Record> {
        let key = job.failed(point, None, String::new()).key;
        let record = self
            .store
            .get(&key)
            .filter(|record| record.failure().is_none())?;
        (!self.plan.force).then(|| record.clone())
    }

    fn load(&mut self, job: &Job<'_>) -> Result<(Runner, Loaded)> {
        let name = &job.variant.name;
        let overall = self.overall(0.0);
        let (watcher, interrupt) = (&mut *self.watcher, self.interrupt);
        let quantising = &self.plan.quantising;
        let samples = job.samples.as_deref();
        let source = quantising.source(
            job.model,
            job.variant,
            samples,
            self.device,
            job.act,
            &mut |at| {
                watcher.progress(name, &Stage::Quantise, at.share, overall);
                interrupt.check()
            },
        )?;
        if let Some(told) = source.told() {
            watcher.quantised(name, &told);
        }
        let mut progress = |done: u64, total: u64| {
            let share = done as f64 / total.max(1) as f64;
            watcher.progress(name, &Stage::Load, share, overall);
            interrupt.check()
        };
        let meter = PeakMeter::start();
        let start = self.clock.now();
        let kind = self.plan.engine;
        let flag = self.interrupt.flag();
        let mut runner = Runner::load(
            kind,
            source.model(),
            source.variant(),
            job.act,
            job.kv,
            self.device,
            &flag,
            &mut progress,
        )?;
        let switches = self.plan.switches;
        if let Some(graphs) = switches.graphs {
            runner.set_replays(graphs);
        }
        if let Device::Gpu(gpu) = self.device {
            gpu.set_overlap(switches.overlap.unwrap_or(true));
        }
        let time = self.clock.now() - start;
        let peak_host = meter.peak().map(|peak| peak.bytes);
        self.watcher.progress(name, &Stage::Verify, 0.0, overall);
        let context = job.model.config.max_positions;
        let verification = verify(&mut runner, job.model.config.vocab, context)?;
        let groups = runner
            .weights()
            .map(DeviceWeights::groups)
            .unwrap_or_default();
        let loaded = Loaded {
            weight_bytes: runner.weight_bytes(),
            linear_bytes: runner
                .weights()
                .map_or(Bytes(0), DeviceWeights::linear_bytes),
            groups_used: name_groups(groups, job.subject.scheme.group_size),
            load: Load {
                time,
                read: Bytes(source.model().origin.file_bytes),
                peak_host,
            },
            verification,
        };
        Ok((runner, loaded))
    }

    fn point(&mut self, job: &Job<'_>, point: &Point, runner: &mut Runner) -> Result<Body> {
        let name = &job.variant.name;
        let (done, total) = (self.done as f64, self.total as f64);
        let (watcher, interrupt) = (&mut *self.watcher, self.interrupt);
        match (point, &job.text, &self.plan.quality) {
            (Point::Quality(task), Some(text), Some(plan)) => {
                let chunk = self.plan.chunk.unwrap_or(plan.protocol.context);
                let outcome = quality::run(runner, plan, text, chunk, |scored, all| {
                    let share = scored as f64 / all.max(1) as f64;
                    watcher.progress(name, &Stage::Quality, share, (done + share) / total);
                    interrupt.check()
                })?;
                Ok(Body::Quality {
                    task: task.clone(),
                    outcome: Ok(outcome),
                })
            }
            (Point::Quality(_), ..) => Err(Error::Internal("a text to score was lost".into())),
            (Point::Speed(cell), ..) => {
                let bench = Bench {
                    plan: self.plan,
                    device: self.device,
                    clock: self.clock.clone(),
                    interrupt,
                    power: &self.power,
                    vocab: job.model.config.vocab,
                    kv: job.kv,
                    ceilings: self.ceilings,
                };
                let predicted = runner.weights().and_then(|weights| {
                    let limits = limits(self.plan, self.device, cell, job.kv);
                    Footprint::predict(
                        &weights.config,
                        job.variant,
                        job.act,
                        &weights.source,
                        limits,
                    )
                    .ok()
                });
                let stage = Stage::Speed(*cell);
                watcher.progress(name, &stage, 0.0, done / total);
                let speed = bench.cell(runner, cell, predicted, |share| {
                    watcher.progress(name, &stage, share, (done + share) / total);
                })?;
                Ok(Body::Speed {
                    cell: *cell,
                    outcome: Ok(speed),
                })
            }
        }
    }

    fn overall(&self, share: f64) -> f64 {
        (self.done as f64 + share) / self.total as f64
    }

    /// Puts a point on the disk.
    fn keep(&mut self, record: Record) -> Result<()> {
        self.store.append(record.clone())?;
        self.note(record, false);
        Ok(())
    }

    fn note(&mut self, record: Record, resumed: bool) {
        self.done += 1;
        self.outcome.failed += usize::from(record.failure().is_some());
        self.watcher.point(&record, resumed);
        self.outcome.records.push(record);
    }
}
