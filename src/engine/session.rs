//! An engine: weights and scratch on one device, and what is asked of them.

mod scoring;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generate::LINES;
use super::limits::{Footprint, Limits, step_need};
use super::replay::Replays;
use super::sampler::Sampler;
use super::step_plan::StepPlan;
use super::transformer::{Scratch, Source};
use super::weights::DeviceWeights;
use crate::error::{Error, Result};
use crate::kernels::advance::{Advance, Feed};
use crate::kernels::attention::Queries;
use crate::kernels::sample::{Argmax, LogProb, NO_TOKEN};
use crate::kernels::{Device, Mailbox};
use crate::units::Bytes;

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

/// One token of a step.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    position: u32,
    token: u32,
    /// Number of the prompt, and of the token in it.
    origin: (usize, usize),
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

    /// Says in which slots and at which positions the coming decode steps go on.
    pub(super) fn feed(&mut self, slots: &[u32], positions: &[u32]) -> Result<()> {
        let numbers: Vec<u32> = (0..slots.len() as u32).collect();
        let Scratch { feed, steps, .. } = &mut self.scratch;
        self.device.upload(&mut feed.slots, 0, slots)?;
        self.device.upload(&mut feed.positions, 0, positions)?;
        self.device.upload(&mut feed.rows, 0, &numbers)?;
        self.device.upload(steps, 0, &[self.told])
    }

    /// Asks for a step of what was fed, whose tokens are fed to the one after and told to the mailbox.
    pub(super) fn next_step(&mut self, rows: usize) -> Result<()> {
        let Self {
            device,
            weights,
            scratch,
            limits,
            replays,
            mailbox,
            ..
        } = self;
        replays.step(device, rows, || {
            scratch.forward(
                device,
                weights,
                Source::Feed,
                rows,
                limits.capacity,
                Queries::Single,
            )?;
            scratch.pick(device, weights, Source::Feed, rows)?;
            advance(device, scratch, mailbox, Advance::whole(rows))
        })?;
        self.told = self.told.wrapping_add(1);
        Ok(())
    }

    /// Runs prompts in chunks; the tokens that they go on with are fed to the next step and told, nothing comes back.
    pub(super) fn begin(&mut self, prompts: &[Prompt<'_>]) -> Result<()> {
        let width = prompts.len();
        self.run(
            prompts,
            |p| p.is_last(prompts),
            |engine, picked| {
                engine.pick(picked.len())?;
                let first = picked.first().map_or(0, |p| p.prompt);
                let rows = picked.len();
                let op = Advance {
                    first,
                    rows,
                    width,
                    ends: first + rows == width,
                };
                advance(&engine.device, &mut engine.scratch, &engine.mailbox, op)
            },
        )?;
        self.told = self.told.wrapping_add(1);
        Ok(())
    }

    /// The tokens that argmax has left on the device.
    fn picked_tokens(&self, rows: usize) -> Result<Vec<u32>> {
        let tokens = self
            .device
            .download::<u32>(&self.scratch.targets, 0..rows)?;
        check_tokens(&tokens)?;
        Ok(tokens)
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

    /// Steps through all prompts; for the tokens that `wanted` names, computes logits and
    /// calls `take` on them, at most `head_rows` at a time.
    fn run(
        &mut self,
        prompts: &[Prompt<'_>],
        wanted: impl Fn(&Picked) -> bool,
        mut take: impl FnMut(&mut Self, &[Picked]) -> Result<()>,
    ) -> Result<()> {
        self.check(prompts)?;
        let places: Vec<Place> = prompts
            .iter()
            .enumerate()
            .flat_map(|(number, prompt)| {
                prompt
                    .tokens
                    .iter()
                    .enumerate()
                    .map(move |(i, &token)| Place {
                        slot: prompt.slot as u32,
                        position: (prompt.start + i) as u32,
                        token,
                        origin: (number, i),
                    })
            })
            .collect();
        for step in places.chunks(self.limits.chunk) {
            self.step(step)?;
            let picked: Vec<Picked> = step
                .iter()
                .enumerate()
                .map(|(row, place)| Picked {
                    row: row as u32,
                    prompt: place.origin.0,
                    token: place.origin.1,
                })
                .filter(|p| wanted(p))
                .collect();
            for picked in picked.chunks(self.limits.head_rows) {
                let rows: Vec<u32> = picked.iter().map(|p| p.row).collect();
                self.device
                    .upload(&mut self.scratch.prompt.rows, 0, &rows)?;
                let Self {
                    device,
                    weights,
                    scratch,
                    ..
                } = self;
                device.enter(|| scratch.head(device, weights, Source::Prompt, rows.len()))?;
                take(self, picked)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, places: &[Place]) -> Result<()> {
        self.check_stop()?;
        let Self {
            device,
            weights,
            scratch,
            limits,
            ..
        } = self;
        let column = |f: fn(&Place) -> u32| places.iter().map(f).collect::<Vec<u32>>();
        let inputs = &mut scratch.prompt;
        device.upload(&mut inputs.tokens, 0, &column(|p| p.token))?;
        device.upload(&mut inputs.slots, 0, &column(|p| p.slot))?;
        device.upload(&mut inputs.positions, 0, &column(|p| p.position))?;
        // Tokens of a prompt are neighbours.
        let alone = places.windows(2).all(|pair| pair[0].slot != pair[1].slot);
        let queries = if alone {
            Queries::Single
        } else {
            Queries::Runs
        };
        device.enter(|| {
            scratch.forward(
                device,
                weights,
                Source::Prompt,
                places.len(),
                limits.capacity,
                queries,
            )
        })
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

    fn argmax(&mut self, picked: &[Picked]) -> Result<Vec<u32>> {
        self.pick(picked.len())?;
        self.picked_tokens(picked.len())
    }

    /// The most likely token of each row of logits, left on the device.
    fn pick(&mut self, rows: usize) -> Result<()> {
        let op = Argmax {
            rows,
            vocab: self.weights.config.vocab,
        };
        let Scratch {
            logits, targets, ..
        } = &mut self.scratch;
        op.run(&self.device, logits, targets)
    }

    fn score(&mut self, targets: &[u32]) -> Result<Vec<f32>> {
        self.device.upload(&mut self.scratch.targets, 0, targets)?;
        let op = LogProb {
            rows: targets.len(),
            vocab: self.weights.config.vocab,
        };
        let Scratch {
            logits,
            targets: ids,
            log_probs,
            ..
        } = &mut self.scratch;
        op.run(&self.device, logits, ids, log_probs)?;
        self.device
            .download(&self.scratch.log_probs, 0..targets.len())
    }

    fn host_logits(&self, rows: usize) -> Result<Vec<f32>> {
        self.device
            .download(&self.scratch.logits, 0..rows * self.weights.config.vocab)
    }
}

/// Closes a step: what was picked becomes the next one's input, and is told.
fn advance(device: &Device, scratch: &mut Scratch, mailbox: &Mailbox, op: Advance) -> Result<()> {
    let Scratch {
        targets,
        feed,
        steps,
        ..
    } = scratch;
    let feed = Feed {
        tokens: &mut feed.tokens,
        positions: &mut feed.positions,
        steps,
    };
    op.run(device, targets, feed, mailbox)
}

/// Refuses what argmax gives where no logit is a number.
pub(super) fn check_tokens(tokens: &[u32]) -> Result<()> {
    if tokens.contains(&NO_TOKEN) {
        return Err(Error::Internal("the model's logits are all NaN".into()));
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

/// A token whose logits are wanted: its row in the step, the prompt it comes from and its number there.
struct Picked {
    row: u32,
    prompt: usize,
    token: usize,
}

impl Picked {
    fn is_last(&self, prompts: &[Prompt<'_>]) -> bool {
        self.token + 1 == prompts[self.prompt].tokens.len()
    }
}

fn not_finite(prompt: &Prompt<'_>, token: usize) -> Error {
    Error::Internal(format!(
        "logits at position {} are not finite",
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
