//! Scoring: how likely given tokens are, and whatever else somebody reads off their logits.

use super::{Engine, Picked, Prompt, not_finite};
use crate::error::{Error, Result};

/// What is to be predicted after tokens of a prompt: `tokens[i]` after token `first + i` of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets<'a> {
    /// The first token of the prompt that something is predicted after.
    pub first: usize,
    /// The tokens to predict.
    pub tokens: &'a [u32],
}

/// Which prediction a row of logits is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Number of the prompt.
    pub prompt: usize,
    /// Number of the target among those of the prompt.
    pub target: usize,
    /// The log-probability (natural) of the target.
    pub log_prob: f32,
}

/// Somebody who reads logits, `[predictions, vocab]`, as they come: prompt after prompt, target after target.
pub type LogitsReader<'a> = &'a mut dyn FnMut(&[Prediction], &[f32]) -> Result<()>;

impl Engine {
    /// The log-probability (natural) of each prompt's targets. Logits go to `reader` too, if there is one, after they
    /// are known to be finite; at most [`Limits::head_rows`](super::Limits::head_rows) of them are held at once.
    ///
    /// # Errors
    /// As [`Engine::prefill`]; a NaN or infinity is an error that says where.
    pub fn log_probs_of(
        &mut self,
        prompts: &[Prompt<'_>],
        targets: &[Targets<'_>],
        mut reader: Option<LogitsReader<'_>>,
    ) -> Result<Vec<Vec<f32>>> {
        let fit = |(prompt, targets): (&Prompt<'_>, &Targets<'_>)| {
            targets.first + targets.tokens.len() <= prompt.tokens.len()
        };
        if targets.len() != prompts.len() || !prompts.iter().zip(targets).all(fit) {
            return Err(Error::Internal("targets beyond their prompts".into()));
        }
        let mut all: Vec<Vec<f32>> = targets.iter().map(|t| vec![0.0; t.tokens.len()]).collect();
        let number = |p: &Picked| p.token.wrapping_sub(targets[p.prompt].first);
        self.run(
            prompts,
            |p| number(p) < targets[p.prompt].tokens.len(),
            |engine, picked| {
                let wanted: Vec<u32> = picked
                    .iter()
                    .map(|p| targets[p.prompt].tokens[number(p)])
                    .collect();
                for (p, log_prob) in picked.iter().zip(engine.score(&wanted)?) {
                    if !log_prob.is_finite() {
                        return Err(not_finite(&prompts[p.prompt], p.token));
                    }
                    all[p.prompt][number(p)] = log_prob;
                }
                if let Some(reader) = &mut reader {
                    let predictions: Vec<Prediction> = picked
                        .iter()
                        .map(|p| Prediction {
                            prompt: p.prompt,
                            target: number(p),
                            log_prob: all[p.prompt][number(p)],
                        })
                        .collect();
                    reader(&predictions, &engine.host_logits(picked.len())?)?;
                }
                Ok(())
            },
        )?;
        Ok(all)
    }

    /// The log-probability (natural) of each prompt's tokens after its first, given those before.
    ///
    /// # Errors
    /// As [`Engine::log_probs_of`].
    pub fn log_probs(&mut self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<f32>>> {
        let targets: Vec<Targets<'_>> = prompts
            .iter()
            .map(|prompt| Targets {
                first: 0,
                tokens: prompt.tokens.get(1..).unwrap_or_default(),
            })
            .collect();
        self.log_probs_of(prompts, &targets, None)
    }
}
