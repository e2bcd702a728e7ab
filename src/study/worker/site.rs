//! A worker in this process: a variant on the device, and what is done with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::bench::{Bench, Timing, Turn, chunk_for, limits};
use super::super::energy::Meter;
use super::super::facts;
use super::super::finite::explained;
use super::super::job::{Job, Point};
use super::super::plan::Plan;
use super::super::quality::{Role, Score};
use super::super::questions::Asking;
use super::super::runner::Runner;
use super::super::verify::verify;
use super::Hand;
use super::message::{Answer, News, Phase, Request};
use crate::engine::{DeviceWeights, Footprint, Limits};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::memory::PeakMeter;
use crate::measure::{Interrupt, SystemClock, Unavailable};
use crate::results::environment::Ceilings;
use crate::results::record::{Body, Cell, Load, Loaded, Perplexity, Record, TaskQuestion};
use crate::units::{Bytes, Clock, Watts};

/// What all workers of a process share.
pub(in crate::study) struct Site<'a> {
    plan: &'a Plan,
    device: &'a Device,
    ceilings: Option<&'a Ceilings>,
    interrupt: &'a Interrupt,
    /// For a cell: what has been measured of one is lost unless it is measured to its end.
    patient: Interrupt,
    meter: Meter,
    clock: Arc<dyn Clock>,
}

impl<'a> Site<'a> {
    pub(in crate::study) fn new(
        plan: &'a Plan,
        device: &'a Device,
        ceilings: Option<&'a Ceilings>,
        bare_idle: std::result::Result<Watts, Unavailable>,
        interrupt: &'a Interrupt,
    ) -> Self {
        let power = facts::power_source(device);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Self {
            plan,
            device,
            ceilings,
            interrupt,
            patient: interrupt.patient(),
            meter: Meter::new(power, clock.clone(), plan.energy, plan.seed)
                .with_bare_idle(bare_idle),
            clock,
        }
    }

    fn bench_of(&self, job: &Job<'_>) -> Bench<'_> {
        Bench {
            plan: self.plan,
            device: self.device,
            clock: self.clock.clone(),
            interrupt: &self.patient,
            meter: &self.meter,
            vocab: job.model.config.vocab,
            kv: job.kv,
            ceilings: self.ceilings,
        }
    }
}

/// The worker of one variant.
pub(in crate::study) struct Worker<'a> {
    site: &'a Site<'a>,
    job: &'a Job<'a>,
    points: Vec<Point>,
    held: Option<(Runner, Loaded)>,
    /// The point that turns are taken at.
    timing: Option<(usize, Timing)>,
}

impl<'a> Worker<'a> {
    pub(in crate::study) fn new(site: &'a Site<'a>, job: &'a Job<'a>) -> Self {
        Self {
            site,
            job,
            points: job.points(site.plan),
            held: None,
            timing: None,
        }
    }
}

impl Hand for Worker<'_> {
    fn ask(&mut self, request: &Request, tell: &mut dyn FnMut(News)) -> Answer {
        self.answer(request, tell)
            .unwrap_or_else(|error| Answer::Failed {
                fault: explained(error, self.job.model, self.job.act).into(),
            })
    }

    fn process(&mut self) -> Option<u32> {
        None
    }
}

/// Tells the share of a phase that is done.
fn at(phase: Phase, share: f64) -> News {
    News::Progress { phase, share }
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

impl Worker<'_> {
    fn answer(&mut self, request: &Request, tell: &mut dyn FnMut(News)) -> Result<Answer> {
        match *request {
            Request::Open(_) | Request::Stop => Ok(Answer::Done),
            Request::Load => {
                let (runner, loaded) = self.load(tell)?;
                let answer = Box::new(loaded.clone());
                self.held = Some((runner, loaded));
                Ok(Answer::Loaded { loaded: answer })
            }
            Request::Measure { point } => match self.point(point)? {
                Point::Quality(_) => self.quality(point, tell),
                Point::Task(task) => self.task(task, tell),
                Point::Speed(cell) => {
                    self.begin(point, cell)?;
                    self.trials(None, tell)?;
                    self.finish(point, tell)
                }
            },
            Request::Turn { point, turn } => {
                let Point::Speed(cell) = self.point(point)? else {
                    return Err(Error::Internal(format!("point {point} has no turns")));
                };
                if turn.number == 1 || self.timing.as_ref().is_none_or(|(of, _)| *of != point) {
                    self.begin(point, cell)?;
                }
                let enough = self.trials(Some(turn), tell)?;
                Ok(Answer::Paused { enough })
            }
            Request::Finish { point } => self.finish(point, tell),
            Request::Meet { ref processes } => {
                self.site.meter.meet(processes.clone());
                Ok(Answer::Done)
            }
            Request::Predict => {
                if let Some((_, file)) = self.job.base.as_ref().filter(|_| self.job.is_base) {
                    self.score(Role::Base(file), false, tell)?;
                }
                Ok(Answer::Done)
            }
            Request::Rest => {
                let smallest = Limits::new(1, 2, 2).with_kv(self.job.kv);
                self.runner()?.prepare(smallest)?;
                Ok(Answer::Done)
            }
        }
    }

    fn point(&self, number: usize) -> Result<Point> {
        let point = self.points.get(number).cloned();
        point.ok_or_else(|| Error::Internal(format!("there is no point {number}")))
    }

    fn runner(&mut self) -> Result<&mut Runner> {
        match &mut self.held {
            Some((runner, _)) => Ok(runner),
            None => Err(Error::Internal("nothing is loaded".into())),
        }
    }

    fn record(&self, body: Body) -> Answer {
        let loaded = self.held.as_ref().map(|(_, loaded)| loaded.clone());
        Answer::Measured {
            record: Box::new(Record::new(self.job.subject.clone(), loaded, body)),
        }
    }

    fn load(&self, tell: &mut dyn FnMut(News)) -> Result<(Runner, Loaded)> {
        let Self { site, job, .. } = *self;
        let samples = job.samples.as_deref();
        let source = site.plan.quantising.source(
            job.model,
            job.variant,
            samples,
            site.device,
            job.act,
            &mut |quantised| {
                tell(at(Phase::Quantise, quantised.share));
                site.interrupt.check()
            },
        )?;
        if let Some(text) = source.told() {
            tell(News::Note { text });
        }
        let switches = site.plan.switches;
        if let Device::Gpu(gpu) = site.device {
            gpu.set_fused(switches.fuse.unwrap_or(true));
        }
        site.meter.forget();
        let meter = PeakMeter::start();
        let start = site.clock.now();
        let mut runner = Runner::load(
            site.plan.engine,
            source.model(),
            source.variant(),
            job.act,
            job.kv,
            site.device,
            &site.interrupt.flag(),
            &mut |done, total| {
                tell(at(Phase::Load, done as f64 / total.max(1) as f64));
                site.interrupt.check()
            },
        )?;
        if let Some(graphs) = switches.graphs {
            runner.set_replays(graphs);
        }
        if let Device::Gpu(gpu) = site.device {
            gpu.set_overlap(switches.overlap.unwrap_or(true));
            gpu.set_persistent(switches.persistent.unwrap_or(false));
            if let Some(steps) = runner.step_plan() {
                let text = steps.to_string();
                tell(News::Note { text });
            }
        }
        let time = site.clock.now() - start;
        let peak_host = meter.peak().map(|peak| peak.bytes);
        tell(at(Phase::Verify, 0.0));
        let context = job.model.config.max_positions;
        let verification = verify(&mut runner, job.model.config.vocab, context, &*site.clock)?;
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

    fn quality(&mut self, point: usize, tell: &mut dyn FnMut(News)) -> Result<Answer> {
        let Point::Quality(mut task) = self.point(point)? else {
            return Err(Error::Internal(format!("point {point} scores no text")));
        };
        let job = self.job;
        let role = match &job.base {
            Some((_, file)) if job.is_base => Role::Base(file),
            Some((_, file)) if file.exists() => Role::Against(file),
            // Another point: a later run tries the comparison again.
            _ => {
                task.base = None;
                Role::Alone
            }
        };
        let quality = &self.site.plan.quality;
        let under_load = quality.as_ref().is_some_and(|q| q.under_load);
        let outcome = Ok(self.score(role, under_load, tell)?);
        Ok(self.record(Body::Quality { task, outcome }))
    }

    /// Scores the text of the variant.
    fn score(
        &mut self,
        role: Role<'_>,
        under_load: bool,
        tell: &mut dyn FnMut(News),
    ) -> Result<Perplexity> {
        let (site, job) = (self.site, self.job);
        let plan = site.plan;
        let Some(text) = &job.text else {
            return Err(Error::Internal("a text to score was lost".into()));
        };
        let batches = plan.cells.iter().map(|cell| cell.batch);
        let new = match role {
            Role::Base(file) if !file.exists() => Some(file),
            _ => None,
        };
        let score = Score {
            text,
            role,
            chunk: plan.chunk.unwrap_or(text.task.context),
            batch: under_load.then(|| batches.max().unwrap_or(1)),
        };
        let runner = self.runner()?;
        runner.stop_when(site.interrupt.flag());
        let found = score.run(runner, &mut |scored, all| {
            tell(at(Phase::Point, scored as f64 / all.max(1) as f64));
            site.interrupt.check()
        })?;
        if let Some(file) = new {
            tell(News::Note { text: file.told() });
        }
        let mut own = found.own;
        own.configuration = Some(self.runner()?.configuration());
        Ok(own)
    }

    /// Scores the documents of a task.
    fn task(&mut self, task: TaskQuestion, tell: &mut dyn FnMut(News)) -> Result<Answer> {
        let (site, job) = (self.site, self.job);
        let Some(questions) = &job.questions else {
            return Err(Error::Internal("the tasks to score were lost".into()));
        };
        let batches = site.plan.cells.iter().map(|cell| cell.batch);
        let how = Asking {
            model: job.model,
            chunk: chunk_for(site.plan.chunk, site.device),
            batch: batches.max().unwrap_or(1),
        };
        let runner = self.runner()?;
        runner.stop_when(site.interrupt.flag());
        let mut answers = questions.ask(&task, how, runner, &mut |share| {
            tell(at(Phase::Point, share));
            site.interrupt.check()
        })?;
        answers.configuration = Some(runner.configuration());
        Ok(self.record(Body::Task {
            task,
            outcome: Ok(answers),
        }))
    }

    /// Gets ready for the trials of a cell.
    fn begin(&mut self, point: usize, cell: Cell) -> Result<()> {
        self.timing = None;
        let (plan, device, job) = (self.site.plan, self.site.device, self.job);
        let predicted = self.runner()?.weights().and_then(|weights| {
            Footprint::predict(
                &weights.config,
                job.variant,
                job.act,
                &weights.source,
                limits(plan, device, &cell, job.kv),
                device,
            )
            .ok()
        });
        let bench = self.site.bench_of(job);
        let patient = self.site.patient.flag();
        self.runner()?.stop_when(patient);
        let timing = bench.begin(self.runner()?, cell, predicted)?;
        self.timing = Some((point, timing));
        Ok(())
    }

    /// Makes trials of the cell at hand; gives whether there are enough.
    fn trials(&mut self, turn: Option<Turn>, tell: &mut dyn FnMut(News)) -> Result<bool> {
        let bench = self.site.bench_of(self.job);
        let (Some((_, timing)), Some((runner, _))) = (&mut self.timing, &mut self.held) else {
            return Err(Error::Internal("no cell is at hand".into()));
        };
        bench.trials(runner, timing, turn, |share| tell(at(Phase::Point, share)))
    }

    /// Measures the rest of the cell at hand.
    fn finish(&mut self, point: usize, tell: &mut dyn FnMut(News)) -> Result<Answer> {
        let Some((_, timing)) = self.timing.take().filter(|(of, _)| *of == point) else {
            return Err(Error::Internal(format!("point {point} was not begun")));
        };
        let bench = self.site.bench_of(self.job);
        let cell = timing.cell;
        let runner = self.runner()?;
        let outcome = Ok(bench.finish(runner, timing, &mut |share| {
            tell(at(Phase::Energy, share));
        })?);
        Ok(self.record(Body::Speed { cell, outcome }))
    }
}
