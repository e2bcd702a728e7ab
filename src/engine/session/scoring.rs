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

/// Tokens whose followers are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation<'a> {
    /// What is read.
    pub prompt: Prompt<'a>,
    /// The tokens that should follow the last ones of the prompt, one each.
    pub targets: &'a [u32],
}

/// What a model makes of a token that should come next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Its log-probability (natural).
    pub log_prob: f32,
    /// Whether it is the most likely one.
    pub greedy: bool,
}

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

    /// How likely the targets of each continuation are, and whether greedy decoding gives them.
    ///
    /// # Errors
    /// As [`Engine::log_probs_of`]; also if there are more targets than tokens, or one is outside the vocabulary.
    pub fn continuations(&mut self, wanted: &[Continuation<'_>]) -> Result<Vec<Vec<Predicted>>> {
        let vocab = self.weights.config.vocab;
        for Continuation { prompt, targets } in wanted {
            let known = targets.iter().all(|&target| (target as usize) < vocab);
            if targets.len() > prompt.tokens.len() || !known {
                return Err(Error::Internal(format!(
                    "{} targets of a vocabulary of {vocab} after {} tokens",
                    targets.len(),
                    prompt.tokens.len()
                )));
            }
        }
        let prompts: Vec<Prompt<'_>> = wanted.iter().map(|c| c.prompt).collect();
        let unscored = |c: &Continuation<'_>| c.prompt.tokens.len() - c.targets.len();
        let mut all: Vec<Vec<Predicted>> = vec![Vec::new(); wanted.len()];
        self.run(
            &prompts,
            |picked| picked.token >= unscored(&wanted[picked.prompt]),
            |engine, picked| {
                let target = |p: &Picked| {
                    let one = &wanted[p.prompt];
                    one.targets[p.token - unscored(one)]
                };
                let targets: Vec<u32> = picked.iter().map(target).collect();
                let likeliest = engine.argmax(picked)?;
                let log_probs = engine.score(&targets)?;
                for (i, p) in picked.iter().enumerate() {
                    if !log_probs[i].is_finite() {
                        return Err(not_finite(&prompts[p.prompt], p.token));
                    }
                    // A prompt's tokens come in their order.
                    all[p.prompt].push(Predicted {
                        log_prob: log_probs[i],
                        greedy: likeliest[i] == targets[i],
                    });
                }
                Ok(())
            },
        )?;
        Ok(all)
    }
}
