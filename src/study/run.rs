//! The main job: every variant of every model is loaded, verified, scored and timed, and each point is on the disk
//! before the next begins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::bench::{Bench, chunk_for, limits};
use super::facts;
use super::job::{Job, Point, jobs};
use super::plan::{EngineKind, Plan};
use super::quality::{self, Role, Score};
use super::questions::Questions;
use super::runner::Runner;
use super::stored::notice;
use super::verify::verify;
use crate::engine::{DeviceWeights, Footprint, StepPlan};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::memory::PeakMeter;
use crate::measure::{Interrupt, PowerSource, SystemClock};
use crate::model::Model;
use crate::quality::TextFormat;
use crate::results::environment::Ceilings;
use crate::results::record::{
    Body, Cell, Load, Loaded, Perplexity, Record, TaskAnswers, TaskQuestion,
};
use crate::results::{Environment, Store};
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
    /// The documents of a task are scored.
    Task(String),
    /// A cell is timed.
    Speed(Cell),
}

/// Somebody who wants to know how far a run is.
pub trait Watcher {
    /// A text was read as this format, giving so many tokens.
    fn text(&mut self, model: &str, format: TextFormat, tokens: u64);
    /// Work on a variant: the share of this stage that is done, and the share of the whole run.
    fn progress(&mut self, variant: &str, stage: &Stage, share: f64, overall: f64);
    /// A variant is loaded, and its steps go like this on the GPU.
    fn plan(&mut self, _variant: &str, _plan: &StepPlan) {}
    /// The predictions of a base are on the disk, so large, for variants to be compared with.
    fn base(&mut self, variant: &str, path: &Path, size: Bytes);
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
            watcher.text(&job.model.name, text.format, text.layout.tokens_total);
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
        match session.job(job, &jobs) {
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
        if let Some(tasks) = &plan.tasks {
            notices.extend(Questions::prepare(tasks, &model)?.notices(tasks));
        }
        let scored = text.as_ref().map(|text| text.scored_ids());
        plan.quantising
            .samples(&model, &plan.variants, scored.as_deref())?;
    }
    Ok(notices)
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
    fn job(&mut self, job: &Job<'_>, jobs: &[Job<'_>]) -> Result<()> {
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
        let asked = |(point, known): (&Point, &Option<Record>)| {
            matches!(point, Point::Quality(_)) && known.is_none()
        };
        let compared = points.iter().zip(&known).any(asked) && self.base_is_ready(job, jobs)?;
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
                None => match self.point(job, point, compared, &mut runner) {
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
        if let Device::Gpu(gpu) = self.device {
            gpu.set_fused(self.plan.switches.fuse.unwrap_or(true));
        }
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
            if let Some(steps) = runner.step_plan() {
                self.watcher.plan(name, &steps);
            }
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

    /// Whether there is a base to compare a variant with; one whose predictions are not kept is scored for that.
    fn base_is_ready(&mut self, job: &Job<'_>, jobs: &[Job<'_>]) -> Result<bool> {
        let Some((_, file)) = job.base.as_ref().filter(|_| !job.is_base) else {
            return Ok(false);
        };
        let base = jobs
            .iter()
            .find(|base| base.is_base && std::ptr::eq(base.model, job.model));
        let Some(base) = base.filter(|_| !file.exists()) else {
            return Ok(file.exists());
        };
        let made = self.load(base).and_then(|(mut runner, loaded)| {
            if !loaded.verification.passed() {
                return Ok(());
            }
            self.score(base, Role::Base(file), false, &mut runner)
                .map(|_| ())
        });
        match made {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            // Then there is nothing to compare with; what is wrong with the base stands on its own record.
            _ => Ok(file.exists()),
        }
    }

    /// Scores the text of a job.
    fn score(
        &mut self,
        job: &Job<'_>,
        role: Role<'_>,
        under_load: bool,
        runner: &mut Runner,
    ) -> Result<Perplexity> {
        let (Some(text), Some(plan)) = (&job.text, &self.plan.quality) else {
            return Err(Error::Internal("a text to score was lost".into()));
        };
        let name = &job.variant.name;
        let (done, total) = (self.done as f64, self.total as f64);
        let (watcher, interrupt) = (&mut *self.watcher, self.interrupt);
        let batches = self.plan.cells.iter().map(|cell| cell.batch);
        let new = match role {
            Role::Base(file) if !file.exists() => Some(file),
            _ => None,
        };
        let score = Score {
            text,
            role,
            chunk: self.plan.chunk.unwrap_or(plan.protocol.context),
            batch: under_load.then(|| batches.max().unwrap_or(1)),
        };
        let found = score.run(runner, &mut |scored, all| {
            let share = scored as f64 / all.max(1) as f64;
            watcher.progress(name, &Stage::Quality, share, (done + share) / total);
            interrupt.check()
        })?;
        if let Some(file) = new {
            watcher.base(name, file.path(), file.size());
        }
        Ok(found.own)
    }

    /// Scores the documents of a task.
    fn ask(
        &mut self,
        job: &Job<'_>,
        task: &TaskQuestion,
        runner: &mut Runner,
    ) -> Result<TaskAnswers> {
        let Some(questions) = &job.questions else {
            return Err(Error::Internal("the tasks to score were lost".into()));
        };
        let name = &job.variant.name;
        let (done, total) = (self.done as f64, self.total as f64);
        let (watcher, interrupt) = (&mut *self.watcher, self.interrupt);
        let stage = Stage::Task(task.name.clone());
        let chunk = chunk_for(self.plan.chunk, self.device);
        questions.ask(task, job.model, runner, chunk, &mut |share| {
            watcher.progress(name, &stage, share, (done + share) / total);
            interrupt.check()
        })
    }

    fn point(
        &mut self,
        job: &Job<'_>,
        point: &Point,
        compared: bool,
        runner: &mut Runner,
    ) -> Result<Body> {
        if let Point::Quality(task) = point {
            let mut task = task.clone();
            let role = match &job.base {
                Some((_, file)) if job.is_base => Role::Base(file),
                Some((_, file)) if compared => Role::Against(file),
                // Another point: a later run tries the comparison again.
                _ => {
                    task.base = None;
                    Role::Alone
                }
            };
            let under_load = self.plan.quality.as_ref().is_some_and(|q| q.under_load);
            let outcome = Ok(self.score(job, role, under_load, runner)?);
            return Ok(Body::Quality { task, outcome });
        }
        if let Point::Task(task) = point {
            let outcome = Ok(self.ask(job, task, runner)?);
            let task = task.clone();
            return Ok(Body::Task { task, outcome });
        }
        let name = &job.variant.name;
        let (done, total) = (self.done as f64, self.total as f64);
        let (watcher, interrupt) = (&mut *self.watcher, self.interrupt);
        let Point::Speed(cell) = point else {
            return Err(Error::Internal("a point of no kind".into()));
        };
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
                self.device,
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
