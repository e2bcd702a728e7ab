//! Going through the cells: prepare, judge, time, put on record.

use super::bench::{Bed, Bench, Family, timed};
use super::ops::Sizes;
use super::plan::MicrobenchPlan;
use super::timer::{Heat, Timer};
use crate::error::{Error, Result};
use crate::kernels::fill::Filling;
use crate::kernels::stream::{ReadAll, ReadPlan};
use crate::kernels::{Buf, BufType, Device};
use crate::measure::memory::HostMemory;
use crate::measure::{Interrupt, SystemClock};
use crate::model::Model;
use crate::results::Environment;
use crate::results::environment::Ceilings;
use crate::results::microbench::Record;
use crate::results::microbench::record::{Measured, Outcome, Store, Subject, Timing};
use crate::results::roofline::{Cost, Limits};
use crate::scheme::DType;
use crate::stats::Summary;
use crate::units::{Bytes, Clock};

/// Somebody who wants to know how far a run of the microbenchmark is.
pub trait MicrobenchWatcher {
    /// A cell is being prepared, judged or timed; the share of the whole run that is done.
    fn progress(&mut self, subject: &Subject, overall: f64);
    /// A cell is on record; it is this share of the whole run.
    fn cell(&mut self, record: &Record, resumed: bool, share: f64);
}

/// What a run came to.
#[derive(Debug)]
pub struct MicrobenchOutcome {
    /// The records of the plan's cells, in its order; fewer if the run was interrupted.
    pub records: Vec<Record>,
    /// Cells that failed.
    pub failed: usize,
    /// Whether the user stopped it.
    pub interrupted: bool,
}

/// The cache that is assumed where the system does not tell.
const UNKNOWN_CACHE: u64 = 64 << 20;

/// The share of free memory that the buffers of a bench may take.
const ROOM: f64 = 0.45;

/// Runs `plan` on `device`, keeping records in `store`; cells that are there are not measured again. Percentages of
/// ceilings are of those in `environment`.
///
/// # Errors
/// If a model cannot be opened, or the store cannot be written. A failing cell is a record.
pub fn run(
    plan: &MicrobenchPlan,
    device: &Device,
    environment: &Environment,
    store: &mut Store,
    interrupt: &Interrupt,
    watcher: &mut dyn MicrobenchWatcher,
) -> Result<MicrobenchOutcome> {
    plan.check()?;
    let models = plan
        .models
        .iter()
        .map(Model::open)
        .collect::<Result<Vec<_>>>()?;
    let sizes = Sizes {
        plan,
        models: &models,
        device,
    };
    let mut families = Vec::new();
    for op in &plan.ops {
        families.extend((op.families)(&sizes)?);
    }
    let clock = SystemClock::new();
    let mut tokens = plan.tokens.clone();
    tokens.sort_unstable();
    tokens.dedup();
    let mut session = Session {
        plan,
        device,
        environment,
        store,
        interrupt,
        watcher,
        clock: &clock,
        total: (families.len() * tokens.len()).max(1),
        outcome: MicrobenchOutcome {
            records: Vec::new(),
            failed: 0,
            interrupted: false,
        },
    };
    for mut family in families {
        match session.family(&mut *family, &tokens) {
            Err(Error::Interrupted) => {
                session.outcome.interrupted = true;
                break;
            }
            other => other?,
        }
    }
    Ok(session.outcome)
}

/// Opens every model of `plan`.
///
/// # Errors
/// What is missing or broken.
pub fn check_inputs(plan: &MicrobenchPlan) -> Result<()> {
    plan.models
        .iter()
        .try_for_each(|spec| Model::open(spec).map(drop))
}

struct Session<'a> {
    plan: &'a MicrobenchPlan,
    device: &'a Device,
    environment: &'a Environment,
    store: &'a mut Store,
    interrupt: &'a Interrupt,
    watcher: &'a mut dyn MicrobenchWatcher,
    clock: &'a dyn Clock,
    total: usize,
    outcome: MicrobenchOutcome,
}

impl Session<'_> {
    fn family(&mut self, family: &mut dyn Family, tokens: &[usize]) -> Result<()> {
        let known: Vec<Option<Record>> = tokens
            .iter()
            .map(|&tokens| self.on_record(&self.subject(family, tokens)))
            .collect();
        let missing = tokens
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none());
        let fewest = missing.map(|(&tokens, _)| tokens).min();
        // What is free now: the buffers of the family before are gone.
        let bed = fewest.map(|fewest| Bed {
            device: self.device,
            cache: self.cache().unwrap_or(UNKNOWN_CACHE),
            room: room(self.device),
            fewest,
            seed: self.plan.seed,
        });
        for (&tokens, known) in tokens.iter().zip(known) {
            self.interrupt.check()?;
            let subject = self.subject(family, tokens);
            let roles = family.identity().roles.clone();
            let record = match (known, &bed) {
                (Some(known), _) => {
                    self.note(Record { roles, ..known }, true);
                    continue;
                }
                (None, Some(bed)) => {
                    let overall = self.outcome.records.len() as f64 / self.total as f64;
                    self.watcher.progress(&subject, overall);
                    let outcome = match self.cell(family, bed, tokens) {
                        Ok(outcome) => outcome,
                        Err(Error::Interrupted) => return Err(Error::Interrupted),
                        Err(error) => Outcome::Failed {
                            reason: error.to_string(),
                        },
                    };
                    Record::new(subject, roles, outcome)
                }
                (None, None) => continue,
            };
            self.store.append(record.clone())?;
            self.note(record, false);
        }
        Ok(())
    }

    fn subject(&self, family: &dyn Family, tokens: usize) -> Subject {
        let identity = family.identity();
        Subject {
            op: identity.op.to_owned(),
            sizes: identity.sizes.clone(),
            tokens,
            variant: identity.variant.clone(),
            activation_dtype: identity.act.clone(),
            device: self.environment.device.name.clone().unwrap_or_default(),
            threads: is_cpu(self.device).then(rayon::current_num_threads),
            tool_version: self.environment.tool_version.clone(),
        }
    }

    /// The record of a cell that need not be measured again: failed ones are tried once more.
    fn on_record(&self, subject: &Subject) -> Option<Record> {
        let record = self.store.get(&subject.key())?;
        let done = record.outcome.serves(self.plan.verify_only) && !self.plan.force;
        done.then(|| record.clone())
    }

    /// Verified, then timed.
    fn cell(&self, family: &mut dyn Family, bed: &Bed<'_>, tokens: usize) -> Result<Outcome> {
        let mut bench = family.prepare(bed, tokens)?;
        if self.plan.verify_only {
            return verify(&mut *bench);
        }
        measure(
            &mut *bench,
            bed,
            &self.timer(),
            self.environment.ceilings.as_ref(),
            self.cache(),
        )
    }

    fn timer(&self) -> Timer<'_> {
        Timer::new(
            self.device,
            self.clock,
            self.interrupt,
            self.plan.rule,
            self.plan.warm_up,
        )
    }

    fn cache(&self) -> Option<u64> {
        self.environment.device.cache_bytes
    }

    fn note(&mut self, record: Record, resumed: bool) {
        self.outcome.failed += usize::from(record.failure().is_some());
        self.watcher.cell(&record, resumed, 1.0 / self.total as f64);
        self.outcome.records.push(record);
    }
}

fn is_cpu(device: &Device) -> bool {
    device.kind() == "cpu"
}

/// Memory that the buffers of one bench may take.
fn room(device: &Device) -> Bytes {
    let free = match device.memory() {
        Some((free, _)) => Some(free),
        None => HostMemory::available().map(|bytes| bytes.0),
    };
    free.map_or(Bytes(4 << 30), |free| Bytes((ROOM * free as f64) as u64))
}

/// Judges a bench.
fn verify(bench: &mut dyn Bench) -> Result<Outcome> {
    Ok(match bench.judge()? {
        Ok(verification) => Outcome::Verified {
            plan: bench.plan(),
            verification,
        },
        Err(fault) => Outcome::Failed {
            reason: format!("not timed: {fault}"),
        },
    })
}

/// Judges a bench and times it, a reader of as many bytes beside it.
fn measure(
    bench: &mut dyn Bench,
    bed: &Bed<'_>,
    timer: &Timer<'_>,
    ceilings: Option<&Ceilings>,
    cache: Option<u64>,
) -> Result<Outcome> {
    let verification = match verify(bench)? {
        Outcome::Verified { verification, .. } => verification,
        wrong => return Ok(wrong),
    };
    let facts = bench.facts().clone();
    let cost = Cost {
        read_bytes: facts.cost.read,
        written_bytes: facts.cost.written,
        flops: facts.cost.flops,
    };
    let cold = timed(bench, timer, Heat::Cold)?;
    let warm = timed(bench, timer, Heat::Warm)?;
    let read_floor = read_floor(bed, timer, facts.cost.bytes())?;
    let result = Measured {
        plan: bench.plan(),
        cpu_reference: is_cpu(timer.device),
        timer: timer.name().to_owned(),
        cost,
        limits: Limits::of(ceilings, facts.product),
        verification,
        cold,
        warm,
        read_floor,
        peer: bench.peer(timer)?,
        cache_bytes: cache,
    };
    Ok(Outcome::Ok {
        result: Box::new(result),
    })
}

/// Times a kernel that only reads, over as many bytes, cold: on a GPU the fastest of some.
fn read_floor(bed: &Bed<'_>, timer: &Timer<'_>, bytes: f64) -> Result<Timing> {
    let count = (bytes / 4.0).ceil().max(1.0) as usize;
    let size = 4 * count as u64;
    let copies = bed.copies(size)?;
    let plans: &[ReadPlan] = match bed.device {
        Device::Cpu => &[ReadPlan::PLENTY],
        Device::Gpu(_) => &[ReadPlan::PLENTY, ReadPlan::FEW_BLOCKS],
    };
    let results = plans
        .iter()
        .map(|&plan| ReadAll { count, plan }.results(bed.device));
    let most = results.max().unwrap_or(1);
    let mut sets = (0..copies)
        .map(|_| {
            // What is read does not matter; that the pages are really there does.
            let mut x = bed.device.alloc(BufType::Float(DType::F32), count)?;
            Filling::Constant(1.0).run(bed.device, &mut x, 0, count)?;
            Ok((x, bed.device.alloc(BufType::U32, most)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut best: Option<Timing> = None;
    for &plan in plans {
        let op = ReadAll { count, plan };
        let mut call = |copy: usize| {
            let (x, out): &mut (Buf, Buf) = &mut sets[copy];
            op.run(timer.device, x, out)
        };
        let timing = timer.time(&mut call, copies, size * copies as u64, Heat::Cold)?;
        if best
            .as_ref()
            .is_none_or(|best| median(&timing) < median(best))
        {
            best = Some(timing);
        }
    }
    best.ok_or_else(|| Error::Internal("nothing was read".into()))
}

fn median(timing: &Timing) -> f64 {
    Summary::of(&timing.samples_s).map_or(f64::INFINITY, |summary| summary.p50)
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Facts, Rotated};
    use super::super::judge::Judge;
    use super::*;
    use crate::kernels::Cost;
    use crate::measure::trial::{StopRule, WarmUp};

    /// A bench that gives `result` where 2 is right, and counts its calls.
    fn bench(result: f32) -> Rotated<'static, (f32, usize)> {
        Rotated {
            facts: Facts {
                cost: Cost {
                    read: 4e4,
                    written: 0.0,
                    flops: 2e4,
                },
                product: Some("f32"),
                copies: 2,
                bytes: 80_000,
            },
            sets: vec![(0.0, 0); 2],
            plan: Box::new(|| "by hand".into()),
            call: Box::new(move |set, _| {
                *set = (result, set.1 + 1);
                Ok(())
            }),
            judge: Box::new(move |set| {
                set.0 = result;
                let mut judge = Judge::default();
                judge.element(set.0, 2.0, 0.1, || "the result".into());
                Ok(judge.verdict(0.1))
            }),
            library: Err("none".into()),
        }
    }

    fn outcome(bench: &mut dyn Bench) -> Outcome {
        let (clock, interrupt) = (SystemClock::new(), Interrupt::new());
        let rule = StopRule::exactly(3);
        let timer = Timer::new(&Device::Cpu, &clock, &interrupt, rule, WarmUp::default());
        let bed = Bed {
            device: &Device::Cpu,
            cache: 1 << 16,
            room: Bytes(1 << 30),
            fewest: 1,
            seed: 1,
        };
        measure(bench, &bed, &timer, None, None).unwrap()
    }

    #[test]
    fn what_is_wrong_is_not_timed() {
        let mut wrong = bench(2.5);
        let Outcome::Failed { reason } = outcome(&mut wrong) else {
            panic!("a wrong result is timed");
        };
        assert!(
            reason.contains("not timed: the result is 2.5 instead of 2"),
            "{reason}"
        );
        assert!(wrong.sets.iter().all(|set| set.1 == 0), "{:?}", wrong.sets);
    }

    #[test]
    fn what_is_only_to_be_verified_is_not_timed_either() {
        let mut right = bench(2.0);
        let found = verify(&mut right).unwrap();
        assert!(matches!(&found, Outcome::Verified { plan, .. } if plan == "by hand"));
        assert!(right.sets.iter().all(|set| set.1 == 0), "{:?}", right.sets);
        assert!(found.serves(true) && !found.serves(false));
        assert!(outcome(&mut right).serves(true));
    }

    #[test]
    fn what_is_right_is_timed_cold_on_all_copies_and_warm_on_one() {
        let mut right = bench(2.0);
        let Outcome::Ok { result: found } = outcome(&mut right) else {
            panic!("a right result is not timed");
        };
        assert!(right.sets[0].1 > right.sets[1].1 && right.sets[1].1 > 0);
        assert_eq!((found.cold.samples_s.len(), found.cold.copies), (3, 2));
        assert_eq!((found.warm.copies, found.warm.rotated_bytes), (1, 40_000));
        assert_eq!(
            found.read_floor.rotated_bytes / found.read_floor.copies as u64,
            40_000
        );
        assert!(found.cpu_reference && found.limits.product_tflop_per_s.is_none());
        assert_eq!(found.verification.elements, 1);
    }

    #[test]
    fn a_reader_reads_everything() {
        let mut x = vec![0.0_f32; 100_001];
        x[100_000] = 3.5;
        let op = ReadAll::new(x.len());
        let mut out = Buf::from_vec(vec![u32::MAX; op.results(&Device::Cpu)]);
        op.run(&Device::Cpu, &Buf::from_vec(x), &mut out).unwrap();
        let all = out.host::<u32>().unwrap().iter().fold(0, |a, b| a ^ b);
        assert_eq!(all, 3.5_f32.to_bits());
    }
}
