//! How an engine runs prompts and decode steps: which tokens go into a step, and what is made of its logits.

use super::{Engine, Prompt, check_tokens};
use crate::engine::scratch::{Scratch, Source};
use crate::error::Result;
use crate::kernels::advance::{Advance, Feed};
use crate::kernels::attention::Queries;
use crate::kernels::sample::{Argmax, LogProb};
use crate::kernels::{Device, Mailbox};

/// One token of a step.
#[derive(Clone, Copy)]
struct StepToken {
    slot: u32,
    position: u32,
    token: u32,
    /// Number of the prompt, and of the token in it.
    origin: (usize, usize),
}

/// A token whose logits are wanted: its row in the step, the prompt it comes from and its number there.
pub(super) struct Picked {
    row: u32,
    pub(super) prompt: usize,
    pub(super) token: usize,
}

impl Picked {
    pub(super) fn is_last(&self, prompts: &[Prompt<'_>]) -> bool {
        self.token + 1 == prompts[self.prompt].tokens.len()
    }
}

impl Engine {
    /// Says in which slots and at which positions the coming decode steps go on.
    pub(in crate::engine) fn feed(&mut self, slots: &[u32], positions: &[u32]) -> Result<()> {
        let numbers: Vec<u32> = (0..slots.len() as u32).collect();
        let Scratch { feed, steps, .. } = &mut self.scratch;
        self.device.upload(&mut feed.slots, 0, slots)?;
        self.device.upload(&mut feed.positions, 0, positions)?;
        self.device.upload(&mut feed.rows, 0, &numbers)?;
        self.device.upload(steps, 0, &[self.told])
    }

    /// Asks for a step of what was fed, whose tokens are fed to the one after and told to the mailbox.
    pub(in crate::engine) fn next_step(&mut self, rows: usize) -> Result<()> {
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
    pub(in crate::engine) fn begin(&mut self, prompts: &[Prompt<'_>]) -> Result<()> {
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
    pub(super) fn picked_tokens(&self, rows: usize) -> Result<Vec<u32>> {
        let tokens = self
            .device
            .download::<u32>(&self.scratch.targets, 0..rows)?;
        check_tokens(&tokens)?;
        Ok(tokens)
    }

    /// Steps through all prompts; for the tokens that `wanted` names, computes logits and
    /// calls `take` on them, at most `head_rows` at a time.
    pub(super) fn run(
        &mut self,
        prompts: &[Prompt<'_>],
        wanted: impl Fn(&Picked) -> bool,
        mut take: impl FnMut(&mut Self, &[Picked]) -> Result<()>,
    ) -> Result<()> {
        self.check(prompts)?;
        let all: Vec<StepToken> = prompts
            .iter()
            .enumerate()
            .flat_map(|(number, prompt)| {
                prompt
                    .tokens
                    .iter()
                    .enumerate()
                    .map(move |(i, &token)| StepToken {
                        slot: prompt.slot as u32,
                        position: (prompt.start + i) as u32,
                        token,
                        origin: (number, i),
                    })
            })
            .collect();
        for step in all.chunks(self.limits.chunk) {
            self.step(step)?;
            let picked: Vec<Picked> = step
                .iter()
                .enumerate()
                .map(|(row, token)| Picked {
                    row: row as u32,
                    prompt: token.origin.0,
                    token: token.origin.1,
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

    fn step(&mut self, tokens: &[StepToken]) -> Result<()> {
        self.check_stop()?;
        let Self {
            device,
            weights,
            scratch,
            limits,
            ..
        } = self;
        let column = |f: fn(&StepToken) -> u32| tokens.iter().map(f).collect::<Vec<u32>>();
        let inputs = &mut scratch.prompt;
        device.upload(&mut inputs.tokens, 0, &column(|t| t.token))?;
        device.upload(&mut inputs.slots, 0, &column(|t| t.slot))?;
        device.upload(&mut inputs.positions, 0, &column(|t| t.position))?;
        // Tokens of a prompt are neighbours.
        let alone = tokens.windows(2).all(|pair| pair[0].slot != pair[1].slot);
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
                tokens.len(),
                limits.capacity,
                queries,
            )
        })
    }

    pub(super) fn argmax(&mut self, picked: &[Picked]) -> Result<Vec<u32>> {
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

    pub(super) fn score(&mut self, targets: &[u32]) -> Result<Vec<f32>> {
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

    pub(super) fn host_logits(&self, rows: usize) -> Result<Vec<f32>> {
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
