//! Checks that a loaded variant computes what it must, before anything of it is timed.
//!
//! First that the forward pass is one ([`forward`]), then that what is timed is what it seems to be ([`generation`]): as
//! many tokens as are reported, the same each time, computed anew each time, and the same whatever the launches.

mod forward;
mod generation;

use super::prompts::random_tokens;
use super::runner::Runner;
use crate::engine::Engine;
use crate::error::Result;
use crate::results::record::{Check, Verification};
use crate::scheme::DType;
use crate::units::Clock;

/// Tokens of the longest probe.
const PROBE: usize = 24;

/// Runs every check. A check that fails does not stop the others.
///
/// # Errors
/// If a forward pass itself fails.
pub(super) fn verify(
    runner: &mut Runner,
    vocab: usize,
    context: usize,
    clock: &dyn Clock,
) -> Result<Verification> {
    if matches!(runner, Runner::Candle(_)) {
        return verify_candle(runner, vocab, clock);
    }
    let mut checks = forward::checks(runner, vocab, context)?;
    checks.extend(generation::checks(runner, vocab, context, clock)?);
    Ok(Verification { checks })
}

/// What two ways of computing the same logits may differ by, of the largest logit. Sums in another order round otherwise,
/// and what was rounded otherwise goes through every layer: after L of them, each of which rounds what it adds to the
/// residual stream twice, a random walk of 2 L steps of a unit of the activations; three times that for the largest of many
/// logits. Where inputs become codes, one that falls to the other side moves by a whole step of 127 instead.
fn rounding(engine: &Engine) -> f32 {
    let weights = engine.weights();
    let unit = match weights.act {
        DType::F32 => 0.0,
        DType::F16 => f32::exp2(-11.0),
        DType::BF16 => f32::exp2(-8.0),
    };
    let codes = if weights.inputs_become_codes() {
        0.5 / 127.0
    } else {
        0.0
    };
    let steps = (2 * weights.config.layers) as f32;
    (3.0 * (unit + codes) * steps.sqrt()).max(0.02)
}

fn check(name: &str, passed: bool, detail: String) -> Check {
    Check {
        name: name.into(),
        passed,
        detail,
    }
}

/// candle shows tokens only: the same prompt must give the same ones twice, and as many as are reported.
fn verify_candle(runner: &mut Runner, vocab: usize, clock: &dyn Clock) -> Result<Verification> {
    const STEPS: usize = 3;
    let prompt = [random_tokens(0, 0, 0, PROBE, vocab)];
    let first = runner.generate(&prompt, 0, STEPS, clock)?;
    let second = runner.generate(&prompt, 0, STEPS, clock)?;
    let same = first.tokens == second.tokens && first.tokens.iter().all(|&t| (t as usize) < vocab);
    Ok(Verification {
        checks: vec![
            generation::counted(&first, STEPS, 1),
            check(
                "repeatable tokens",
                same,
                format!("{:?} and {:?}", first.tokens, second.tokens),
            ),
        ],
    })
}
