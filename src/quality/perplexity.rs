//! The losses of a text that a protocol has cut.

use super::protocol::Layout;
use crate::engine::{Engine, Prediction, Prompt, Targets};
use crate::error::Result;

/// One scored segment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Segment {
    /// Sum of the negative log-likelihoods of its scored tokens, in nats.
    pub nll: f64,
    /// Sum of their squares.
    pub nll_squares: f64,
    /// How many those are.
    pub tokens: u64,
}

impl Segment {
    /// Counts one more token.
    pub fn add(&mut self, log_prob: f32) {
        let nll = -f64::from(log_prob);
        self.nll += nll;
        self.nll_squares += nll * nll;
        self.tokens += 1;
    }
}

/// A token that was to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The segment that it belongs to.
    pub segment: usize,
    /// Its log-probability.
    pub log_prob: f32,
}

/// Somebody who reads the logits, `[targets, vocab]`, that predict the tokens of a text, in the order of its windows.
pub trait Witness {
    /// Reads some more.
    ///
    /// # Errors
    /// What keeps it from going on.
    fn read(&mut self, targets: &[Target], logits: &[f32]) -> Result<()>;
}

/// Scores a text on `engine`, as many windows at a time as it has slots, NLL summed in f64; `witness` sees the logits.
/// `progress` is told windows done and in all, and may stop the work.
///
/// # Errors
/// If a window does not fit the engine, a loss is not finite, or the witness gives up.
pub fn perplexity(
    engine: &mut Engine,
    layout: &Layout,
    mut witness: Option<&mut dyn Witness>,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Segment>> {
    let mut segments = vec![Segment::default(); layout.segments];
    let all = layout.windows.len();
    let mut done = 0;
    progress(done, all)?;
    for batch in layout.windows.chunks(engine.limits().slots) {
        let prompts: Vec<Prompt<'_>> = batch
            .iter()
            .enumerate()
            .map(|(slot, window)| Prompt {
                slot,
                start: 0,
                tokens: window.given(),
            })
            .collect();
        let targets: Vec<Targets<'_>> = batch
            .iter()
            .map(|window| Targets {
                first: window.first - 1,
                tokens: window.scored(),
            })
            .collect();
        let log_probs = match &mut witness {
            None => engine.log_probs_of(&prompts, &targets, None)?,
            Some(witness) => {
                let mut read = |rows: &[Prediction], logits: &[f32]| {
                    let told = rows.iter().map(|row| Target {
                        segment: batch[row.prompt].segment,
                        log_prob: row.log_prob,
                    });
                    witness.read(&told.collect::<Vec<_>>(), logits)
                };
                engine.log_probs_of(&prompts, &targets, Some(&mut read))?
            }
        };
        for (window, log_probs) in batch.iter().zip(log_probs) {
            let segment = &mut segments[window.segment];
            log_probs.into_iter().for_each(|p| segment.add(p));
        }
        done += batch.len();
        progress(done, all)?;
    }
    Ok(segments)
}
