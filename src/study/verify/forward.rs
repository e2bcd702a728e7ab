//! Whether logits are what a forward pass gives: finite, not all alike, and independent of how tokens are put together.

use super::{PROBE, check, rounding};
use crate::engine::{Limits, Prompt};
use crate::error::Result;
use crate::results::record::Check;
use crate::study::prompts::random_tokens;
use crate::study::runner::Runner;

pub(super) fn checks(runner: &mut Runner, vocab: usize, context: usize) -> Result<Vec<Check>> {
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
    let tolerance = rounding(engine);
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
    Ok(vec![
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
            worst <= tolerance * largest,
            format!(
                "largest difference {:.1e} of the largest logit, of {tolerance:.1e} that rounding explains",
                worst / largest.max(f32::MIN_POSITIVE)
            ),
        ),
    ])
}
