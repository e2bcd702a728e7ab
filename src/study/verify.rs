//! Checks that a loaded variant computes what it must, before anything of it is timed.

use super::prompts::random_tokens;
use super::runner::Runner;
use crate::engine::{Limits, Prompt};
use crate::error::Result;
use crate::results::record::{Check, Verification};

/// Tokens of the longest probe.
const PROBE: usize = 24;
/// What two ways of computing the same logits may differ by, of the largest logit: rounding, no more.
const TOLERANCE: f32 = 0.02;

/// Runs every check. A check that fails does not stop the others.
///
/// # Errors
/// If a forward pass itself fails.
pub(super) fn verify(runner: &mut Runner, vocab: usize, context: usize) -> Result<Verification> {
    if matches!(runner, Runner::Candle(_)) {
        return verify_candle(runner, vocab);
    }
    let length = PROBE.min(context);
    let rows: Vec<Vec<u32>> = [length, 1, length / 2]
        .iter()
        .enumerate()
        .map(|(i, &n)| random_tokens(0, 0, i as u64, n.max(1), vocab))
        .collect();
    let prompts: Vec<Prompt<'_>> = rows
        .iter()
        .enumerate()
        .map(|(slot, tokens)| Prompt {
            slot,
            start: 0,
            tokens,
        })
        .collect();
    let engine = runner.own(Limits::new(rows.len(), length, length * rows.len()))?;
    let together = engine.logits(&prompts)?;

    let finite = together.iter().flatten().all(|x| x.is_finite());
    let spread = together[0]
        .chunks_exact(vocab)
        .all(|row| row.iter().any(|x| *x != row[0]));
    let mut stepped = Vec::new();
    let alone = runner.own(Limits::new(1, length, 1))?;
    for (position, token) in rows[0].chunks(1).enumerate() {
        let prompt = Prompt {
            slot: 0,
            start: position,
            tokens: token,
        };
        stepped.extend(alone.logits(&[prompt])?.concat());
    }
    let largest = together[0].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let worst = together[0]
        .iter()
        .zip(&stepped)
        .fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
    let check = |name: &str, passed, detail: String| Check {
        name: name.into(),
        passed,
        detail,
    };
    Ok(Verification {
        checks: vec![
            check(
                "finite logits",
                finite,
                format!("{} logits", together.iter().map(Vec::len).sum::<usize>()),
            ),
            check(
                "logits tell tokens apart",
                spread,
                format!("at {length} positions"),
            ),
            check(
                "token by token equals at once, alone equals batched",
                worst <= TOLERANCE * largest,
                format!(
                    "largest difference {:.1e} of the largest logit",
                    worst / largest.max(f32::MIN_POSITIVE)
                ),
            ),
        ],
    })
}

/// candle shows tokens only: the same prompt must give the same ones twice.
fn verify_candle(runner: &mut Runner, vocab: usize) -> Result<Verification> {
    let prompt = [random_tokens(0, 0, 0, PROBE, vocab)];
    let (first, second) = (runner.prefill(&prompt, 0)?, runner.prefill(&prompt, 0)?);
    let passed = first == second && (first[0] as usize) < vocab;
    let detail = format!("token {} twice", first[0]);
    Ok(Verification {
        checks: vec![Check {
            name: "repeatable tokens".into(),
            passed,
            detail,
        }],
    })
}
