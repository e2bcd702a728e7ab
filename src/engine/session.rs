//! An engine: weights and scratch on one device, and what is asked of them.

mod scoring;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generate::LINES;
use super::limits::{Footprint, Limits, step_need};
use super::replay::Replays;
use super::sampler::Sampler;
use super::scratch::Scratch;
use super::step_plan::StepPlan;
use super::weights::DeviceWeights;
use crate::error::{Error, Result};
use crate::kernels::sample::NO_TOKEN;
use crate::kernels::{Device, Mailbox};
use crate::units::Bytes;

use steps::Picked;

pub use scoring::{Continuation, LogitsReader, Predicted, Prediction, Targets};

/// A model that is ready to run.
pub struct Engine {
    pub(super) device: Device,
    weights: DeviceWeights,
    limits: Limits,
    // Goes before the memory that it uses.
    replays: Replays,
    pub(super) scratch: Scratch,
    /// Where decode steps tell their tokens.
    pub(super) mailbox: Arc<Mailbox>,
    /// Decode steps that have been asked for since it was made; names those to come.
    pub(super) told: u32,
    stop: Option<Arc<AtomicBool>>,
}

/// Tokens that continue what a slot of the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The sequence.
    pub slot: usize,
    /// Position of the first token: how many the slot holds already.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [u32],
}

impl Engine {
    /// Allocates what runs within `limits` need.
    ///
    /// # Errors
    /// If the memory is not there or the capacity exceeds what the model was made for.
    pub fn new(device: Device, weights: DeviceWeights, limits: Limits) -> Result<Self> {
        check_context(&weights, limits)?;
        let scratch = Scratch::new(&device, &weights, limits)?;
        if let Device::Gpu(gpu) = &device {
            let DeviceWeights {
                config,
                variant,
                act,
                source,
                ..
            } = &weights;
            // Here, for a step that is being recorded cannot ask for more.
            gpu.reserve(&step_need(config, variant, *act, source, limits).on(gpu))?;
        }
        Ok(Self {
            replays: Replays::new(&device),
            mailbox: Arc::new(device.mailbox(limits.slots * LINES)?),
            told: 0,
            device,
            weights,
            limits,
            scratch,
            stop: None,
        })
    }

    /// From now on, gives up with [`Error::Interrupted`] before the next step once `flag` is set.
    pub fn stop_when(&mut self, flag: Arc<AtomicBool>) {
        self.stop = Some(flag);
    }

    /// Whether decode steps are recorded once and then replayed, which is how a GPU begins, or run launch by launch. On the
    /// CPU there is nothing to record.
    pub fn set_replays(&mut self, enabled: bool) {
        self.replays.set(enabled, &self.device);
    }

    /// Whether decode steps are recorded and replayed.
    pub fn replays(&self) -> bool {
        self.replays.enabled()
    }

    /// How decode steps of `rows` sequences are replayed, in words; `None` before the first.
    pub fn replay_of(&self, rows: usize) -> Option<String> {
        self.replays.describe(rows)
    }

    /// Which launches are fused.
    pub fn plan(&self) -> StepPlan {
        self.scratch.plan
    }

    /// How many steps the host may ask for ahead. Few make the mailbox small; for tests.
    ///
    /// # Errors
    /// If the memory is not there.
    #[doc(hidden)]
    pub fn set_ahead(&mut self, steps: usize) -> Result<()> {
        // What is recorded tells the mailbox that there was.
        self.replays.forget();
        self.mailbox = Arc::new(self.device.mailbox(self.limits.slots * steps)?);
        Ok(())
    }

    /// Gives the weights back, so that an engine of other limits can be made of them.
    pub fn into_weights(self) -> DeviceWeights {
        self.weights
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weights it runs.
    pub fn weights(&self) -> &DeviceWeights {
        &self.weights
    }

    /// The limits it was made for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What is really allocated.
    pub fn footprint(&self) -> Footprint {
        Footprint {
            weights: self.weights.bytes(),
            linear: self.weights.linear_bytes(),
            kv: self.scratch.kv_bytes(),
            activations: self.scratch.activation_bytes(),
            workspace: match &self.device {
                Device::Cpu => Bytes(0),
                Device::Gpu(gpu) => gpu.workspace_bytes(),
            },
        }
    }

    /// Runs prompts of any lengths, in chunks, and hands the most likely next token of each.
    ///
    /// # Errors
    /// If a prompt does not fit its slot, a token is outside the vocabulary, or logits are not finite.
    pub fn prefill(&mut self, prompts: &[Prompt<'_>]) -> Result<Vec<u32>> {
        let mut next = vec![NO_TOKEN; prompts.len()];
        self.run(
            prompts,
            |p| p.is_last(prompts),
            |engine, picked| {
                let tokens = engine.argmax(picked)?;
                picked
                    .iter()
                    .zip(tokens)
                    .for_each(|(p, token)| next[p.prompt] = token);
                Ok(())
            },
        )?;
        Ok(next)
    }

    /// Appends `tokens[i]` at position `positions[i]` of slot `i` and gives the most likely token after each.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn decode(&mut self, tokens: &[u32], positions: &[usize]) -> Result<Vec<u32>> {
        let rows = tokens.len();
        if positions.len() != rows {
            return Err(Error::Internal(format!(
                "{rows} tokens at {} positions",
                positions.len()
            )));
        }
        let most = self.limits.chunk.min(self.limits.head_rows);
        if self.replays.enabled() && (1..=most).contains(&rows) {
            return self.replay(tokens, positions);
        }
        self.prefill(&continued(tokens, positions))
    }

    /// One step of the first slots, by what was recorded of it, or the first time launch by launch.
    fn replay(&mut self, tokens: &[u32], positions: &[usize]) -> Result<Vec<u32>> {
        let rows = tokens.len();
        let prompts = continued(tokens, positions);
        self.check(&prompts)?;
        self.check_stop()?;
        let positions: Vec<u32> = positions.iter().map(|&p| p as u32).collect();
        let numbers: Vec<u32> = (0..rows as u32).collect();
        self.device
            .upload(&mut self.scratch.feed.tokens, 0, tokens)?;
        self.feed(&numbers, &positions)?;
        self.next_step(rows)?;
        self.picked_tokens(rows)
    }

    pub(super) fn check_stop(&self) -> Result<()> {
        let stopped = self
            .stop
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed));
        if stopped {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// As [`Engine::prefill`], but each next token is drawn by its own sampler.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn prefill_sampled(
        &mut self,
        prompts: &[Prompt<'_>],
        samplers: &mut [&mut Sampler],
    ) -> Result<Vec<u32>> {
        let mut next = vec![NO_TOKEN; prompts.len()];
        self.run(
            prompts,
            |p| p.is_last(prompts),
            |engine, picked| {
                let logits = engine.host_logits(picked.len())?;
                for (p, row) in picked
                    .iter()
                    .zip(logits.chunks_exact(engine.weights.config.vocab))
                {
                    next[p.prompt] = samplers[p.prompt].pick(row)?;
                }
                Ok(())
            },
        )?;
        Ok(next)
    }

    /// The logits after every token of every prompt, `[tokens, vocab]` per prompt.
    ///
    /// # Errors
    /// As [`Engine::prefill`], but logits may be anything.
    pub fn logits(&mut self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<f32>>> {
        let vocab = self.weights.config.vocab;
        let mut all: Vec<Vec<f32>> = prompts
            .iter()
            .map(|p| vec![0.0; p.tokens.len() * vocab])
            .collect();
        self.run(
            prompts,
            |_| true,
            |engine, picked| {
                let logits = engine.host_logits(picked.len())?;
                for (p, row) in picked.iter().zip(logits.chunks_exact(vocab)) {
                    all[p.prompt][p.token * vocab..][..vocab].copy_from_slice(row);
                }
                Ok(())
            },
        )?;
        Ok(all)
    }

    pub(super) fn check(&self, prompts: &[Prompt<'_>]) -> Result<()> {
        let vocab = self.weights.config.vocab;
        for prompt in prompts {
            let end = prompt.start + prompt.tokens.len();
            if prompt.slot >= self.limits.slots || end > self.limits.capacity {
                return Err(Error::Internal(format!(
                    "slot {} up to position {end} in a cache of {} slots of {}",
                    prompt.slot, self.limits.slots, self.limits.capacity
                )));
            }
            if let Some(token) = prompt.tokens.iter().find(|&&t| t as usize >= vocab) {
                return Err(Error::Config(format!(
                    "token id {token} is outside the model's vocabulary of {vocab}"
                )));
            }
        }
        Ok(())
    }
}

/// Refuses what argmax gives where no logit is a number.
pub(super) fn check_tokens(tokens: &[u32]) -> Result<()> {
    if tokens.contains(&NO_TOKEN) {
        return Err(Error::NotFinite("the logits are all NaN".into()));
    }
    Ok(())
}

/// One token more for each slot from the first on.
fn continued<'a>(tokens: &'a [u32], positions: &[usize]) -> Vec<Prompt<'a>> {
    tokens
        .chunks(1)
        .zip(positions)
        .enumerate()
        .map(|(slot, (tokens, &start))| Prompt {
            slot,
            start,
            tokens,
        })
        .collect()
}

fn not_finite(prompt: &Prompt<'_>, token: usize) -> Error {
    Error::NotFinite(format!(
        "the logits at position {} are not finite",
        prompt.start + token
    ))
}

fn check_context(weights: &DeviceWeights, limits: Limits) -> Result<()> {
    let most = weights.config.max_positions;
    if limits.capacity > most {
        return Err(Error::Config(format!(
            "{} positions (depth + prompt + generated) exceed the model's context of {most}",
            limits.capacity
        )));
    }
    Ok(())
}
