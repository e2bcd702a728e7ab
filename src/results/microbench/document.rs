//! A run of the microbenchmark as a document, `candlepower.kernels/1`: what its table, CSV and page are drawn from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::environment::Environment;
use super::super::roofline::Cost;
use super::super::study::Stats;
use super::crossover::{self, Reign};
use super::record::{Measured, Outcome, Peer, Record, Timing, Verification};
use crate::stats::{self, Summary};

/// The versions of the document that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.kernels/1")]
    V1,
}

/// Ops by shape, number of tokens and variant: how long they take, and how near that is to what the device can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Microbench {
    /// The version of this document.
    pub schema: Version,
    /// Where it ran.
    pub environment: Environment,
    /// The exact command line.
    pub command: Vec<String>,
    /// Every op at every shape, in the order of the run.
    pub shapes: Vec<Shape>,
}

/// An op at one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shape {
    /// The op, such as `linear`.
    pub op: String,
    /// Its sizes other than the number of tokens, such as `n` and `k`.
    pub sizes: BTreeMap<String, usize>,
    /// Where the shape occurs, such as `llama-3.1-8b qkv`.
    pub roles: Vec<String>,
    /// Its cells, variant by variant, tokens ascending.
    pub cells: Vec<Cell>,
    /// Which variant is the fastest from how many tokens on, cold; empty with a single variant.
    pub fastest: Vec<Reign>,
}

/// One variant at one number of tokens. Where it failed, the reason stands; where it was only verified, what that found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    /// Rows of the input.
    pub tokens: usize,
    /// The variant of the weights; the type of the activations for an op without weights.
    pub variant: String,
    /// The type of the activations.
    pub activation_dtype: String,
    /// Why there are no figures.
    pub reason: Option<String>,
    /// What was found.
    pub figures: Option<Figures>,
    /// What was found where nothing was to be timed.
    pub verified: Option<Verified>,
}

/// A cell that was verified only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// How the op was computed.
    pub plan: String,
    /// How the result was judged.
    pub verification: Verification,
}

/// The figures of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// How the op was computed.
    pub plan: String,
    /// Whether the CPU reference was timed.
    pub cpu_reference: bool,
    /// What told the time.
    pub timer: String,
    /// The traffic and arithmetic that the op cannot do without.
    pub cost: Cost,
    /// Elements that were compared before anything was timed.
    pub verified_elements: u64,
    /// The largest error among them as a share of what it may be.
    pub verified_worst: f64,
    /// Time of a call on buffers that no cache holds. The figures below are of its median.
    pub cold: Spread,
    /// Time of a call on the same buffers again and again.
    pub warm: Spread,
    /// Time in which a plain kernel reads as many bytes as the op moves.
    pub read_floor: Spread,
    /// 100 × the read floor over the time.
    pub percent_of_read_floor: f64,
    /// Bytes moved per second, decimal GB/s.
    pub gb_per_s: f64,
    /// Operations per second, in TFLOP/s.
    pub tflop_per_s: f64,
    /// What bounds the op by the measured ceilings: `read`, or `matmul` with its type; null where none was measured.
    pub limit: Option<String>,
    /// The time that this bound leaves at best.
    pub predicted_us: Option<f64>,
    /// 100 × that over the time.
    pub percent_of_limit: Option<f64>,
    /// The library beside it.
    pub peer: Library,
}

/// The spread of the time per call, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// Median with its interval, mean, extremes, quantiles.
    pub us: Stats,
    /// The distance of the quartiles as a percentage of the median; null below four samples.
    pub quartiles_percent: Option<f64>,
    /// Calls in a sample.
    pub calls: usize,
    /// Sets of buffers that the calls take turns on.
    pub copies: usize,
    /// Bytes of all of them.
    pub rotated_bytes: u64,
    /// What ended the sampling.
    pub stop_reason: String,
}

/// A library's product at the same shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Library {
    /// There is none to compare with.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Timed.
    Measured {
        /// The library and what it was asked for.
        name: String,
        /// Its time, cold.
        cold: Box<Spread>,
        /// Its median over the op's: above 1 where the op is faster.
        speedup: f64,
    },
}

impl Microbench {
    /// Puts records together; ops, shapes and variants stand in the order in which the records name them.
    pub fn from_records(
        environment: Environment,
        command: Vec<String>,
        records: &[Record],
    ) -> Self {
        let mut shapes: Vec<Shape> = Vec::new();
        for record in records {
            let subject = &record.subject;
            let place = shapes
                .iter()
                .position(|shape| shape.op == subject.op && shape.sizes == subject.sizes)
                .unwrap_or_else(|| {
                    shapes.push(Shape {
                        op: subject.op.clone(),
                        sizes: subject.sizes.clone(),
                        roles: Vec::new(),
                        cells: Vec::new(),
                        fastest: Vec::new(),
                    });
                    shapes.len() - 1
                });
            let shape = &mut shapes[place];
            for role in &record.roles {
                if !shape.roles.contains(role) {
                    shape.roles.push(role.clone());
                }
            }
            shape.cells.push(Cell::of(record));
        }
        for shape in &mut shapes {
            let variants = shape.variants();
            let place = |cell: &Cell| variants.iter().position(|name| *name == cell.variant);
            shape.cells.sort_by_key(|cell| (place(cell), cell.tokens));
            shape.fastest = crossover::reigns(shape);
        }
        Self {
            schema: Version::V1,
            environment,
            command,
            shapes,
        }
    }

    /// Every cell with its shape.
    pub fn cells(&self) -> impl Iterator<Item = (&Shape, &Cell)> {
        self.shapes
            .iter()
            .flat_map(|shape| shape.cells.iter().map(move |cell| (shape, cell)))
    }
}

impl Shape {
    /// The variants, in the order of the run.
    pub fn variants(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for cell in &self.cells {
            if !names.contains(&cell.variant) {
                names.push(cell.variant.clone());
            }
        }
        names
    }

    /// The sizes in one line: `6144 × 4096` for a product, `heads 32, kv_heads 8` for others.
    pub fn size_text(&self) -> String {
        if let (2, Some(n), Some(k)) = (self.sizes.len(), self.sizes.get("n"), self.sizes.get("k"))
        {
            return format!("{n} × {k}");
        }
        let sizes: Vec<String> = self
            .sizes
            .iter()
            .map(|(name, size)| format!("{name} {size}"))
            .collect();
        sizes.join(", ")
    }

    /// Op, sizes and where they occur, in one line.
    pub fn title(&self) -> String {
        let mut title = format!("{} {}", self.op, self.size_text());
        if !self.roles.is_empty() {
            title += &format!(" · {}", self.roles.join(", "));
        }
        title
    }
}

impl Cell {
    pub(super) fn of(record: &Record) -> Self {
        let subject = &record.subject;
        let (mut reason, mut figures, mut verified) = (None, None, None);
        match &record.outcome {
            Outcome::Failed { reason: why } => reason = Some(why.clone()),
            Outcome::Verified { plan, verification } => {
                verified = Some(Verified {
                    plan: plan.clone(),
                    verification: verification.clone(),
                });
            }
            Outcome::Ok { result } => match Figures::of(result) {
                Some(found) => figures = Some(found),
                None => reason = Some("it has no samples".to_owned()),
            },
        }
        Self {
            tokens: subject.tokens,
            variant: subject.variant.clone(),
            activation_dtype: subject.activation_dtype.clone(),
            reason,
            figures,
            verified,
        }
    }

    /// How the op was computed, where that is known.
    pub fn plan(&self) -> Option<&str> {
        let timed = self.figures.as_ref().map(|figures| &*figures.plan);
        timed.or_else(|| self.verified.as_ref().map(|verified| &*verified.plan))
    }

    /// The median time of a cold call, in microseconds.
    pub fn cold_us(&self) -> Option<f64> {
        self.figures.as_ref().map(|figures| figures.cold.us.p50)
    }
}

impl Figures {
    fn of(measured: &Measured) -> Option<Self> {
        let (cold, warm) = (Spread::of(&measured.cold)?, Spread::of(&measured.warm)?);
        let read_floor = Spread::of(&measured.read_floor)?;
        let time = cold.us.p50;
        let (bytes, flops) = (measured.cost.bytes(), measured.cost.flops);
        let bound = measured.limits.bound(&measured.cost);
        let peer = match &measured.peer {
            Peer::Unavailable { reason } => Library::Unavailable {
                reason: reason.clone(),
            },
            Peer::Measured { name, timing } => {
                let theirs = Spread::of(timing)?;
                Library::Measured {
                    name: name.clone(),
                    speedup: theirs.us.p50 / time,
                    cold: Box::new(theirs),
                }
            }
        };
        Some(Self {
            plan: measured.plan.clone(),
            cpu_reference: measured.cpu_reference,
            timer: measured.timer.clone(),
            cost: measured.cost,
            verified_elements: measured.verification.elements,
            verified_worst: measured.verification.worst,
            percent_of_read_floor: 100.0 * read_floor.us.p50 / time,
            gb_per_s: bytes / time / 1e3,
            tflop_per_s: flops / time / 1e6,
            predicted_us: bound.as_ref().map(|bound| bound.seconds * 1e6),
            percent_of_limit: bound.as_ref().map(|bound| 1e8 * bound.seconds / time),
            limit: bound.map(|bound| bound.limit),
            peer,
            cold,
            warm,
            read_floor,
        })
    }
}

impl Spread {
    /// `None` without samples.
    fn of(timing: &Timing) -> Option<Self> {
        let mut us: Vec<f64> = timing.samples_s.iter().map(|s| s * 1e6).collect();
        let summary = Summary::of(&us)?;
        us.sort_unstable_by(f64::total_cmp);
        // The lower quartile is as sure as the upper one, for which the rule is written.
        let upper = stats::quantile(&us, 0.75);
        us.iter_mut().for_each(|x| *x = -*x);
        us.reverse();
        let lower = stats::quantile(&us, 0.75).map(|x| -x);
        Some(Self {
            us: Stats::from(summary),
            quartiles_percent: upper
                .zip(lower)
                .map(|(upper, lower)| 100.0 * (upper - lower) / summary.p50),
            calls: timing.calls,
            copies: timing.copies,
            rotated_bytes: timing.rotated_bytes,
            stop_reason: timing.stop_reason.clone(),
        })
    }

    /// Half of the interval of the median as a percentage of it.
    pub fn half_width_percent(&self) -> Option<f64> {
        let (low, high) = self.us.ci95_low.zip(self.us.ci95_high)?;
        Some(50.0 * (high - low) / self.us.p50)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn figures_follow_from_cost_time_and_limits() {
        let document = fixture::document();
        let shape = &document.shapes[0];
        let cell = |variant: &str, tokens| {
            let cells = shape.cells.iter();
            cells
                .filter(|c| c.variant == variant && c.tokens == tokens)
                .find_map(|c| c.figures.as_ref())
                .unwrap()
        };
        let one = cell("bf16", 1);
        assert_eq!(one.limit.as_deref(), Some("read"));
        let seconds = one.cold.us.p50 * 1e-6;
        assert!((one.gb_per_s - one.cost.bytes() / seconds / 1e9).abs() < 1e-6 * one.gb_per_s);
        assert!((one.tflop_per_s - one.cost.flops / seconds / 1e12).abs() < 1e-9);
        let predicted = one.cost.bytes() / (fixture::READ_GB_PER_S * 1e9) * 1e6;
        assert!((one.predicted_us.unwrap() - predicted).abs() < 1e-9 * predicted);
        let share = one.percent_of_limit.unwrap();
        assert!((share - 100.0 * predicted / one.cold.us.p50).abs() < 1e-9);
        assert!(one.percent_of_read_floor > share && one.percent_of_read_floor < 100.0);
        let many = cell("bf16", 1024);
        assert_eq!(many.limit.as_deref(), Some("matmul bf16"));
        assert!(matches!(&many.peer, Library::Measured { speedup, .. } if *speedup > 0.9));
    }

    #[test]
    fn a_failed_cell_has_a_reason_and_no_figures() {
        let document = fixture::document();
        let failed: Vec<_> = document
            .cells()
            .filter(|(_, cell)| cell.figures.is_none())
            .collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].1.reason.as_ref().unwrap().contains("not timed"));
    }

    #[test]
    fn quartiles_need_four_samples() {
        let timing = |samples: &[f64]| Timing {
            samples_s: samples.to_vec(),
            calls: 1,
            copies: 1,
            rotated_bytes: 0,
            warmup_samples: 0,
            stop_reason: "enough".to_owned(),
        };
        let spread = |samples: &[f64]| Spread::of(&timing(samples));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[1.0, 2.0, 3.0]).unwrap().quartiles_percent, None);
        let five = spread(&[5e-6, 1e-6, 3e-6, 2e-6, 4e-6]).unwrap();
        assert!((five.us.p50 - 3.0).abs() < 1e-9);
        assert!((five.quartiles_percent.unwrap() - 100.0 * 2.0 / 3.0).abs() < 1e-9);
    }
}
