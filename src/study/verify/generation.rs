//! Whether a generation is what is reported of it: so many tokens, the same at every repetition, nothing remembered from
//! one to the next, and the same however the work is launched. After what MLPerf's compliance tests ask of a submission.

use super::{PROBE, check, rounding};
use crate::engine::{Arrivals, Engine, Limits, Prompt};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::gpu::Gpu;
use crate::results::record::Check;
use crate::study::prompts::random_tokens;
use crate::study::runner::Runner;
use crate::units::{Clock, Seconds};

/// Tokens that are generated.
const STEPS: usize = 6;

/// How often a prompt is timed that was there before, and one that was not; and how often at most, where other work on the
/// machine may have made all the new ones slow.
const TURNS: u64 = 3;
const MOST_TURNS: u64 = 30;

/// A repetition that takes less than this share of a new prompt's time was not computed.
const LEAST_SHARE: f64 = 0.5;

pub(super) fn checks(
    runner: &mut Runner,
    vocab: usize,
    context: usize,
    clock: &dyn Clock,
) -> Result<Vec<Check>> {
    let steps = STEPS.min(context.saturating_sub(1)).max(1);
    let length = PROBE.min(context.saturating_sub(steps)).max(1);
    let row = |trial, row| random_tokens(1, trial, row, length, vocab);
    let rows = [row(0, 0), row(0, 1)];
    let limits = Limits::new(rows.len(), length + steps, length * rows.len());
    let engine = runner.own(limits)?;
    let first = engine.generate(&prompts(&rows), steps, clock, &mut |_| true)?;
    let mut checks = vec![
        counted(&first, steps, rows.len()),
        one_by_one(engine, &rows, &first, steps)?,
        repeated(engine, &rows, &first, steps, clock)?,
        computed_anew(engine, &row, clock)?,
    ];
    if let Device::Gpu(gpu) = engine.device().clone() {
        for switch in Switch::ALL {
            switch.flip(runner, &gpu, limits)?;
            let other = runner
                .own(limits)?
                .generate(&prompts(&rows), steps, clock, &mut |_| true);
            switch.flip(runner, &gpu, limits)?;
            checks.push(same(switch.name(), &first.tokens, &other?.tokens));
        }
        if gpu.persistent() {
            checks.push(in_one_launch(runner, &gpu, &rows[..1], steps, clock)?);
        }
    }
    Ok(checks)
}

/// A sequence whose steps are one launch each goes on as one whose steps are many.
fn in_one_launch(
    runner: &mut Runner,
    gpu: &Gpu,
    rows: &[Vec<u32>],
    steps: usize,
    clock: &dyn Clock,
) -> Result<Check> {
    let limits = Limits::new(rows.len(), rows[0].len() + steps, rows[0].len());
    let mut run = |persistent| -> Result<(Vec<u32>, String)> {
        gpu.set_persistent(persistent);
        runner.renew(limits)?;
        let engine = runner.own(limits)?;
        let tokens = engine
            .generate(&prompts(rows), steps, clock, &mut |_| true)?
            .tokens;
        Ok((tokens, engine.replay_of(rows.len()).unwrap_or_default()))
    };
    let many = run(false);
    let (one, how) = run(true)?;
    let found = same("one launch and many give the same tokens", &one, &many?.0);
    Ok(Check {
        detail: format!("{}; {how}", found.detail),
        ..found
    })
}

fn prompts(rows: &[Vec<u32>]) -> Vec<Prompt<'_>> {
    let numbered = rows.iter().enumerate();
    numbered
        .map(|(slot, tokens)| Prompt {
            slot,
            start: 0,
            tokens,
        })
        .collect()
}

/// As many tokens as were asked for, each step with its time.
pub(super) fn counted(arrivals: &Arrivals, steps: usize, rows: usize) -> Check {
    let (tokens, stamps) = (arrivals.tokens.len(), arrivals.at.len());
    let ordered = arrivals.at.is_sorted() && arrivals.at.first() >= Some(&arrivals.start);
    check(
        "as many tokens as are reported",
        tokens == steps * rows && stamps == steps && ordered,
        format!("{tokens} tokens of {rows} sequences at {stamps} times, {steps} steps asked for"),
    )
}

/// The tokens of a generation are those of its steps, each asked for alone.
fn one_by_one(
    engine: &mut Engine,
    rows: &[Vec<u32>],
    generated: &Arrivals,
    steps: usize,
) -> Result<Check> {
    let mut next = engine.prefill(&prompts(rows))?;
    let mut tokens = next.clone();
    for step in 1..steps {
        let positions: Vec<usize> = rows.iter().map(|row| row.len() + step - 1).collect();
        next = engine.decode(&next, &positions)?;
        tokens.extend(&next);
    }
    Ok(same(
        "a generation equals its steps one by one",
        &generated.tokens,
        &tokens,
    ))
}

/// The same prompts give the same tokens again, and whether the logits are the same to the bit.
fn repeated(
    engine: &mut Engine,
    rows: &[Vec<u32>],
    generated: &Arrivals,
    steps: usize,
    clock: &dyn Clock,
) -> Result<Check> {
    let again = engine.generate(&prompts(rows), steps, clock, &mut |_| true)?;
    let mut hash = || -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for logits in engine.logits(&prompts(rows))? {
            hasher.update(bytemuck::cast_slice(&logits));
        }
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    };
    let (one, other) = (hash()?, hash()?);
    let bits = if one == other {
        format!("logits the same to the bit, blake3 {one}")
    } else {
        format!("logits not the same to the bit, blake3 {one} and {other}")
    };
    let found = same(
        "the same tokens run to run",
        &generated.tokens,
        &again.tokens,
    );
    Ok(Check {
        detail: format!("{}; {bits}", found.detail),
        ..found
    })
}

/// A prompt that was there before takes as long as one that was not, another prompt gives other logits, and it leaves
/// nothing behind.
fn computed_anew(
    engine: &mut Engine,
    row: &dyn Fn(u64, u64) -> Vec<u32>,
    clock: &dyn Clock,
) -> Result<Check> {
    let known = [row(0, 0)];
    let before = engine.logits(&prompts(&known))?;
    let tolerance = rounding(engine);
    let mut time = |rows: &[Vec<u32>]| -> Result<(Seconds, Vec<Vec<f32>>)> {
        let begin = clock.now();
        engine.prefill(&prompts(rows))?;
        let took = clock.now() - begin;
        Ok((took, engine.logits(&prompts(rows))?))
    };
    let (mut repeat, mut fresh) = (f64::INFINITY, f64::INFINITY);
    let (mut differs, mut returns) = (true, true);
    for turn in 1..=MOST_TURNS {
        let (took, logits) = time(&[row(turn, 0)])?;
        fresh = fresh.min(took.0);
        differs &= logits != before;
        let (took, logits) = time(&known)?;
        repeat = repeat.min(took.0);
        returns &= close(&logits, &before, tolerance);
        if turn >= TURNS && repeat >= LEAST_SHARE * fresh {
            break;
        }
    }
    let share = repeat / fresh.max(f64::MIN_POSITIVE);
    Ok(check(
        "nothing is remembered from run to run",
        differs && returns && (share >= LEAST_SHARE || fresh == 0.0),
        format!(
            "a repeated prompt takes {share:.2} of a new one's time, the new one's logits {}, the old one's then {}",
            if differs { "differ" } else { "are the same" },
            if returns {
                "are what they were"
            } else {
                "are others"
            },
        ),
    ))
}

/// Equal but for rounding, as a share of the largest: on a GPU sums may run in another order.
fn close(a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f32) -> bool {
    let largest = b.iter().flatten().fold(0.0_f32, |m, x| m.max(x.abs()));
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.fold(0.0_f32, |m, (x, y)| m.max((x - y).abs())) <= tolerance * largest
}

/// What changes how work is launched, and must not change what comes out.
#[derive(Debug, Clone, Copy)]
enum Switch {
    Graphs,
    Fusion,
    Overlap,
}

impl Switch {
    const ALL: [Self; 3] = [Self::Graphs, Self::Fusion, Self::Overlap];

    const fn name(self) -> &'static str {
        match self {
            Self::Graphs => "graphs and launch by launch give the same tokens",
            Self::Fusion => "fused and op by op give the same tokens",
            Self::Overlap => "with and without overlap come the same tokens",
        }
    }

    /// Turns it over.
    fn flip(self, runner: &mut Runner, gpu: &Gpu, limits: Limits) -> Result<()> {
        match self {
            Self::Graphs => {
                let replays = runner.own(limits)?.replays();
                runner.set_replays(!replays);
            }
            Self::Fusion => gpu.set_fused(!gpu.fuses()),
            Self::Overlap => gpu.set_overlap(!gpu.overlaps()),
        }
        // What is fused is settled when an engine is made, and what overlaps when a step is recorded.
        runner.renew(limits)
    }
}

fn same(name: &str, one: &[u32], other: &[u32]) -> Check {
    let place = one.iter().zip(other).position(|(a, b)| a != b);
    let detail = match place {
        None if one.len() == other.len() => format!("{} tokens", one.len()),
        None => format!("{} and {} tokens", one.len(), other.len()),
        Some(i) => format!("token {i} is {} and {}", one[i], other[i]),
    };
    check(name, one == other, detail)
}
