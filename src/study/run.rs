//! The main job: every variant of every model is loaded, verified, scored and timed, and each point is on the disk
//! before the next begins. Who does that, here or in a child process, is [`super::worker`]'s business; in which order
//! variants take turns, [`super::turns`]'s.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use super::bench::Turn;
use super::energy::{Meter, opened_before};
use super::facts;
use super::fit::check_fit;
use super::job::{Job, Point, jobs, too_few_trials};
use super::plan::{Plan, positions};
use super::turns::{Group, groups, turns};
use super::worker::{
    Answer, Child, Fault, FaultKind, Hand, Launch, News, Opening, Phase, Request, Site, Worker,
};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::{Interrupt, SystemClock, Unavailable};
use crate::model::Model;
use crate::quality::TextFormat;
use crate::results::record::{Cell, Key, Loaded, Record};
use crate::results::{Environment, Store, store};
use crate::units::Clock;

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
    /// The documents of the task of this name are scored.
    Task(String),
    /// A cell is timed.
    Speed(Cell),
    /// The energy of a cell's work is measured.
    Energy,
}

/// Somebody who wants to know how far a run is.
pub trait Watcher {
    /// A text was read as this format, giving so many tokens.
    fn text(&mut self, model: &str, format: TextFormat, tokens: u64);
    /// Work on a variant: the share of this stage that is done, and the share of the whole run.
    fn progress(&mut self, variant: &str, stage: &Stage, share: f64, overall: f64);
    /// Something about a variant that is worth a line.
    fn note(&mut self, variant: &str, what: &str);
    /// A point is on record.
    fn point(&mut self, record: &Record, resumed: bool);
}

/// Where the work of a run is done.
#[derive(Debug, Clone)]
pub enum Isolation {
    /// In this process: what ends it ends the run.
    Here,
    /// In a child process for each variant, started like this; the plan is the one of this number among those that its
    /// command line stands for.
    Children(Launch, usize),
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The records of the plan's points, in its order; those on record if the run was interrupted.
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

/// Runs `plan` on `device`, keeping records in `store`; points that are there are not measured again. Where children do the
/// work, the device is let go of before the first of them takes it.
///
/// # Errors
/// If a model cannot be opened, the plan fits nothing, or the store cannot be written. A failing point is a record.
pub fn run(
    plan: &Plan,
    device: Device,
    environment: &Environment,
    isolation: &Isolation,
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
    let jobs = jobs(plan, &device, environment, &models)?;
    for job in &jobs {
        check_fit(plan, &device, job)?;
        if let Some(text) = &job.text {
            watcher.text(&job.model.name, text.format, text.layout.tokens_total);
        }
    }
    let points: Vec<Key> = jobs.iter().flat_map(|job| job.keys(plan)).collect();
    store.note_points(&points)?;
    let groups = groups(plan, &device, &jobs, watcher);
    let power = facts::power_source(&device);
    let (device, launch) = match isolation {
        Isolation::Here => (Some(device), None),
        Isolation::Children(launch, plan) => {
            drop(device);
            (None, Some((launch, *plan)))
        }
    };
    // Nobody has the device open now, until the first child does.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let bare = Meter::new(power, clock, plan.energy, plan.seed);
    let bare_idle = OnceCell::new();
    let ceilings = environment.ceilings.as_ref();
    let site = device
        .as_ref()
        .map(|device| Site::new(plan, device, ceilings, opened_before(), interrupt));
    let hire = |number: usize| -> Result<Box<dyn Hand + '_>> {
        let job = &jobs[number];
        match (&site, launch) {
            (Some(site), _) => Ok(Box::new(Worker::new(site, job))),
            (None, Some((launch, plan_number))) => {
                let drawn = match bare_idle.get() {
                    Some(drawn) => drawn,
                    None => {
                        let drawn = match plan.cells.is_empty() {
                            true => Err(Unavailable::because("nothing is timed")),
                            false => bare.draw_of_nothing(interrupt)?,
                        };
                        bare_idle.get_or_init(|| drawn)
                    }
                };
                let mut child = Child::start(launch, interrupt)?;
                let opening = Opening {
                    environment: environment.clone(),
                    bare_idle_watts: match drawn {
                        Ok(watts) => Ok(watts.0),
                        Err(why) => Err(why.reason.clone()),
                    },
                    plan: plan_number,
                    job: number,
                    keys: job.keys(plan),
                };
                match child.ask(&Request::Open(Box::new(opening)), &mut |_| ()) {
                    Answer::Failed { fault } => Err(fault.into_error()),
                    _ => Ok(Box::new(child)),
                }
            }
            (None, None) => Err(Error::Internal("nobody does the work".into())),
        }
    };
    let mut session = Session::new(plan, &jobs, &hire, store, interrupt, watcher);
    session.outcome.interrupted = match session.run(&groups) {
        Err(Error::Interrupted) => true,
        other => other.map(|()| false)?,
    };
    let mut outcome = std::mem::take(&mut session.outcome);
    drop(session);
    // As whoever puts the study together anew chooses them.
    outcome.records = store::of_points(store.records(), &points);
    Ok(outcome)
}

/// Gives a variant a worker.
type Hire<'a> = dyn Fn(usize) -> Result<Box<dyn Hand + 'a>> + 'a;

/// A variant in a run.
struct Seat<'a> {
    points: Vec<Point>,
    /// What is on record of each.
    records: Vec<Option<Record>>,
    hand: Option<Box<dyn Hand + 'a>>,
    loaded: Option<Loaded>,
    /// Why nothing of it can be measured any more.
    given_up: Option<String>,
    /// Cells that there was no room for.
    too_large: Vec<Cell>,
    /// The share of the point at hand that is done.
    share: f64,
}

struct Session<'a> {
    plan: &'a Plan,
    jobs: &'a [Job<'a>],
    hire: &'a Hire<'a>,
    store: &'a mut Store,
    interrupt: &'a Interrupt,
    watcher: &'a mut dyn Watcher,
    clock: SystemClock,
    seats: Vec<Seat<'a>>,
    outcome: Outcome,
    /// Whether it was said that the cell at hand is the last.
    told_of_the_end: bool,
}

impl<'a> Session<'a> {
    fn new(
        plan: &'a Plan,
        jobs: &'a [Job<'a>],
        hire: &'a Hire<'a>,
        store: &'a mut Store,
        interrupt: &'a Interrupt,
        watcher: &'a mut dyn Watcher,
    ) -> Self {
        let seats = jobs.iter().map(|job| {
            let points = job.points(plan);
            Seat {
                records: points.iter().map(|_| None).collect(),
                points,
                hand: None,
                loaded: None,
                given_up: None,
                too_large: Vec::new(),
                share: 0.0,
            }
        });
        Self {
            plan,
            jobs,
            hire,
            store,
            interrupt,
            watcher,
            clock: SystemClock::new(),
            seats: seats.collect(),
            outcome: Outcome::default(),
            told_of_the_end: false,
        }
    }

    fn run(&mut self, groups: &[Group]) -> Result<()> {
        self.resume();
        for group in groups {
            for job in group.jobs.clone() {
                self.alone(job, group.takes_turns)?;
            }
            if group.takes_turns {
                self.in_turns(&group.jobs)?;
            }
            for seat in &mut self.seats[group.jobs.clone()] {
                seat.hand = None;
            }
        }
        Ok(())
    }

    /// Takes over what is on record; failed points are tried once more.
    fn resume(&mut self) {
        if self.plan.force {
            return;
        }
        for (number, job) in self.jobs.iter().enumerate() {
            for (point, key) in job.keys(self.plan).iter().enumerate() {
                let known = self.store.get(key);
                if let Some(record) = known.filter(|record| record.failure().is_none()) {
                    self.watcher.point(record, true);
                    self.seats[number].records[point] = Some(record.clone());
                }
            }
            if let Some(told) = too_few_trials(self.plan, &self.seats[number].records) {
                self.watcher.note(&job.variant.name, &told);
            }
        }
    }

    /// Measures what is not on record of a variant, without those points that are measured in turns.
    fn alone(&mut self, job: usize, takes_turns: bool) -> Result<()> {
        for point in 0..self.seats[job].points.len() {
            let is_timed = matches!(self.seats[job].points[point], Point::Speed(_));
            if self.seats[job].records[point].is_some() || is_timed && takes_turns {
                continue;
            }
            self.interrupt.check()?;
            if matches!(self.seats[job].points[point], Point::Quality(_)) {
                self.predict_base(job)?;
            }
            if self.may_measure(job, point)? {
                let answer = self.ask(job, point, &Request::Measure { point }, (0.0, 1.0))?;
                self.settle(job, point, answer)?;
            }
        }
        let seat = &mut self.seats[job];
        if !takes_turns {
            seat.hand = None;
        } else if seat.hand.is_some() {
            // What it holds beyond the weights would be in the way of the others.
            if let Answer::Failed { fault } = self.ask(job, 0, &Request::Rest, (0.0, 0.0))? {
                self.part(job, &fault);
            }
        }
        Ok(())
    }

    /// Measures the cells of some variants, each cell with all of them in turns, so that whatever drifts hits all alike.
    fn in_turns(&mut self, jobs: &Range<usize>) -> Result<()> {
        let timed = |point: &Point| matches!(point, Point::Speed(_));
        let points = &self.seats[jobs.start].points;
        let cells: Vec<usize> = (0..points.len()).filter(|&i| timed(&points[i])).collect();
        for cell in cells {
            // The points before the cells are the same in number for all variants of a model.
            let mut waiting = Vec::new();
            for job in jobs.clone() {
                self.interrupt.check()?;
                if self.seats[job].records[cell].is_none() && self.may_measure(job, cell)? {
                    waiting.push(job);
                }
            }
            self.cell_in_turns(cell, waiting)?;
        }
        Ok(())
    }

    fn cell_in_turns(&mut self, point: usize, mut waiting: Vec<usize>) -> Result<()> {
        let mut satisfied = Vec::new();
        let mut round = 0;
        while satisfied.len() < waiting.len() {
            round += 1;
            for job in turns(round, &waiting) {
                if satisfied.contains(&job) || !waiting.contains(&job) {
                    continue;
                }
                // Not looked at the interrupt here: a cell that has begun is measured to its end.
                let of = self.plan.turns;
                let turn = Turn {
                    number: round,
                    of,
                    begin: self.clock.now().0,
                };
                let done = ((round - 1) as f64 / of as f64).min(1.0);
                let request = Request::Turn { point, turn };
                match self.ask(job, point, &request, (done, 1.0 / of as f64))? {
                    Answer::Paused { enough: true } => satisfied.push(job),
                    Answer::Paused { enough: false } => {}
                    other => {
                        waiting.retain(|&left| left != job);
                        self.settle(job, point, other)?;
                    }
                }
            }
        }
        for job in waiting {
            let answer = self.ask(job, point, &Request::Finish { point }, (1.0, 0.0))?;
            self.settle(job, point, answer)?;
        }
        Ok(())
    }

    /// Whether a point can be tried; if not, the reason is put on record.
    fn may_measure(&mut self, job: usize, point: usize) -> Result<bool> {
        let mut reason = self.no_room(job, point);
        if reason.is_none() {
            self.load(job)?;
            reason = self.seats[job].given_up.clone();
        }
        if let Some(reason) = &reason {
            self.fail(job, point, reason.clone())?;
        }
        Ok(reason.is_none())
    }

    /// Why a cell is not tried: there was no room for a smaller one.
    fn no_room(&self, job: usize, point: usize) -> Option<String> {
        let seat = &self.seats[job];
        let Point::Speed(cell) = &seat.points[point] else {
            return None;
        };
        let smaller = |too_large: &&Cell| {
            cell.batch >= too_large.batch && positions(cell) >= positions(too_large)
        };
        let known = seat.too_large.iter().find(smaller)?;
        Some(format!(
            "not tried: out of memory at batch {}, {} positions, which is no larger",
            known.batch,
            positions(known)
        ))
    }

    /// Gives a variant its worker and loads it, unless that is done or hopeless.
    fn load(&mut self, job: usize) -> Result<()> {
        if self.seats[job].hand.is_some() || self.seats[job].given_up.is_some() {
            return Ok(());
        }
        let answer = match (self.hire)(job) {
            Ok(hand) => {
                self.seats[job].hand = Some(hand);
                self.ask(job, 0, &Request::Load, (0.0, 0.0))?
            }
            Err(error) => Answer::Failed {
                fault: error.into(),
            },
        };
        let seat = &mut self.seats[job];
        match answer {
            Answer::Loaded { loaded } => {
                let checks = &loaded.verification.checks;
                let broken = checks.iter().find(|check| !check.passed);
                seat.given_up =
                    broken.map(|check| format!("not timed: {} ({})", check.name, check.detail));
                seat.loaded = Some(*loaded);
            }
            Answer::Failed { fault } if fault.ends_the_run() => return Err(fault.into_error()),
            Answer::Failed { fault } => seat.given_up = Some(fault.to_string()),
            _ => return Err(no_answer()),
        }
        if seat.given_up.is_some() {
            seat.hand = None;
        }
        Ok(())
    }

    /// Sees to it that there is something to compare a variant's predictions with.
    fn predict_base(&mut self, job: usize) -> Result<()> {
        let jobs = self.jobs;
        let Some((_, file)) = jobs[job].base.as_ref().filter(|_| !jobs[job].is_base) else {
            return Ok(());
        };
        let is_base = |other: &Job<'_>| other.is_base && std::ptr::eq(other.model, jobs[job].model);
        let base = jobs.iter().position(is_base).filter(|_| !file.exists());
        let Some(base) = base else {
            return Ok(());
        };
        let was_there = self.seats[base].hand.is_some();
        self.load(base)?;
        // If it fails there is nothing to compare with; what is wrong with the base stands on its own record.
        if self.seats[base].given_up.is_none()
            && let Answer::Failed { fault } = self.ask(base, 0, &Request::Predict, (0.0, 0.0))?
        {
            self.part(base, &fault);
        }
        if !was_there {
            self.seats[base].hand = None;
        }
        Ok(())
    }

    /// Tells the worker of a variant which processes are workers of this run, since each has a context on the device as
    /// long as it lives. Workers in this process have no others.
    fn introduce(&mut self, job: usize) -> Result<Answer> {
        let hands = self.seats.iter_mut().filter_map(|seat| seat.hand.as_mut());
        let processes: Vec<u32> = hands.filter_map(|hand| hand.process()).collect();
        match processes.is_empty() {
            true => Ok(Answer::Done),
            false => self.ask(job, 0, &Request::Meet { processes }, (0.0, 0.0)),
        }
    }

    /// Asks the worker of a variant; what it tells is passed on as the part of a point that begins at the first of `span`
    /// and is as long as the second.
    fn ask(
        &mut self,
        job: usize,
        point: usize,
        request: &Request,
        span: (f64, f64),
    ) -> Result<Answer> {
        if request.may_read_power() {
            match self.introduce(job)? {
                Answer::Done => {}
                failed => return Ok(failed),
            }
        }
        let name = &self.jobs[job].variant.name;
        let others = self.overall() - self.seats[job].share;
        let total = self.total();
        let Seat {
            hand,
            points,
            share: reached,
            ..
        } = &mut self.seats[job];
        let hand = hand
            .as_deref_mut()
            .ok_or_else(|| Error::Internal("a variant without a worker".into()))?;
        let watcher = &mut *self.watcher;
        let (interrupt, told) = (self.interrupt, &mut self.told_of_the_end);
        let answer = hand.ask(request, &mut |news| match news {
            News::Note { text } => watcher.note(name, &text),
            News::Progress { phase, share } => {
                *reached = match phase {
                    Phase::Point => span.0 + span.1 * share,
                    _ => *reached,
                };
                let stage = match phase {
                    Phase::Quantise => Stage::Quantise,
                    Phase::Load => Stage::Load,
                    Phase::Verify => Stage::Verify,
                    Phase::Point => points[point].stage(),
                    Phase::Energy => Stage::Energy,
                };
                let finishes = matches!(
                    (phase, &points[point]),
                    (Phase::Point | Phase::Energy, Point::Speed(_))
                );
                if finishes && interrupt.is_requested() && !*told {
                    *told = true;
                    watcher.note(name, "finishing the cell at hand; Ctrl-C again gives it up");
                }
                watcher.progress(name, &stage, share, (others + *reached) / total);
            }
        });
        match answer {
            Answer::Failed { fault } if fault.kind == FaultKind::Interrupted => {
                Err(Error::Interrupted)
            }
            answer => Ok(answer),
        }
    }

    /// Puts on record what came of a point.
    fn settle(&mut self, job: usize, point: usize, answer: Answer) -> Result<()> {
        match answer {
            Answer::Measured { record } => self.keep(job, point, *record),
            Answer::Failed { fault } => {
                if let (FaultKind::OutOfMemory, Point::Speed(cell)) =
                    (fault.kind, &self.seats[job].points[point])
                {
                    let cell = *cell;
                    self.seats[job].too_large.push(cell);
                }
                self.part(job, &fault);
                self.fail(job, point, fault.to_string())
            }
            _ => Err(no_answer()),
        }
    }

    /// Lets a worker go that is of no more use; the next point gets another.
    fn part(&mut self, job: usize, fault: &Fault) {
        if fault.spoils_the_worker() {
            self.seats[job].hand = None;
        }
    }

    fn fail(&mut self, job: usize, point: usize, reason: String) -> Result<()> {
        let seat = &self.seats[job];
        let record = self.jobs[job].failed(&seat.points[point], seat.loaded.clone(), reason);
        self.keep(job, point, record)
    }

    /// Puts a point on the disk.
    fn keep(&mut self, job: usize, point: usize, mut record: Record) -> Result<()> {
        record.environment = self.store.environment();
        self.store.append(record.clone())?;
        self.outcome.failed += usize::from(record.failure().is_some());
        self.watcher.point(&record, false);
        let seat = &mut self.seats[job];
        seat.records[point] = Some(record);
        seat.share = 0.0;
        Ok(())
    }

    /// Points of the plan; one where there is none, for shares of it.
    fn total(&self) -> f64 {
        let points: usize = self.seats.iter().map(|seat| seat.points.len()).sum();
        points.max(1) as f64
    }

    /// Points that are done, with the parts of those at hand.
    fn overall(&self) -> f64 {
        let of = |seat: &Seat<'_>| seat.records.iter().flatten().count() as f64 + seat.share;
        self.seats.iter().map(of).sum()
    }
}

fn no_answer() -> Error {
    Error::Internal("a worker answered what it was not asked".into())
}
