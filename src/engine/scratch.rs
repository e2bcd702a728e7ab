//! What a forward pass writes: buffers that are allocated once, and how much they take.

use super::limits::Limits;
use super::step_plan::StepPlan;
use super::weights::DeviceWeights;
use crate::error::{Error, Result};
use crate::kernels::attention::LayerCache;
use crate::kernels::rope::RopeTable;
use crate::kernels::{Buf, BufType, Device};
use crate::scheme::{DType, KvFormat};
use crate::units::Bytes;

/// Everything that a forward pass writes, allocated once.
pub(super) struct Scratch {
    pub(super) plan: StepPlan,
    pub(super) hidden: Buf,
    pub(super) normed: Buf,
    pub(super) qkv: Buf,
    pub(super) attended: Buf,
    pub(super) gate_up: Buf,
    pub(super) gated: Buf,
    pub(super) rounding: InputBufs,
    /// Inputs that the host writes.
    pub(super) prompt: Inputs,
    /// Inputs of decode steps, which the step before leaves here.
    pub(super) feed: Inputs,
    /// Decode steps so far: names the line of the mailbox.
    pub(super) steps: Buf,
    pub(super) picked: Buf,
    pub(super) picked_normed: Buf,
    pub(super) logits: Buf,
    pub(super) targets: Buf,
    pub(super) log_probs: Buf,
    pub(super) rope: RopeTable,
    pub(super) kv: KvFormat,
    pub(super) cache: Vec<LayerCache>,
}

/// Which tokens a step runs, and which of them go through the head. All u32.
pub(super) struct Inputs {
    pub(super) tokens: Buf,
    pub(super) slots: Buf,
    pub(super) positions: Buf,
    /// Numbers of the step's tokens whose logits are wanted.
    pub(super) rows: Buf,
}

impl Inputs {
    fn new(device: &Device, tokens: usize, rows: usize) -> Result<Self> {
        let ids = |count| device.alloc(BufType::U32, count);
        Ok(Self {
            tokens: ids(tokens)?,
            slots: ids(tokens)?,
            positions: ids(tokens)?,
            rows: ids(rows)?,
        })
    }

    fn bytes(&self) -> usize {
        [&self.tokens, &self.slots, &self.positions, &self.rows]
            .iter()
            .map(|buf| buf.bytes())
            .sum()
    }
}

/// Who wrote a step's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The host: prompts, or tokens that it continues them with.
    Prompt,
    /// The step before.
    Feed,
}

/// Where a product's input goes that is rounded first.
pub(super) struct InputBufs {
    pub(super) codes: Option<Int8Input>,
    pub(super) rounded: Option<Buf>,
}

impl InputBufs {
    /// Where codes go.
    pub(super) fn codes(&mut self) -> Result<&mut Int8Input> {
        self.codes.as_mut().ok_or_else(no_room)
    }
}

pub(super) fn no_room() -> Error {
    Error::Internal("no room for rounded inputs".into())
}

/// Codes and scales of a product's input.
pub(super) struct Int8Input {
    pub(super) codes: Buf,
    pub(super) scales: Buf,
}

impl Scratch {
    pub(super) fn new(device: &Device, weights: &DeviceWeights, limits: Limits) -> Result<Self> {
        let DeviceWeights { config, act, .. } = weights;
        let numbers = |count| device.alloc(BufType::Float(*act), count);
        let ids = |count| device.alloc(BufType::U32, count);
        let singles = |count| device.alloc(BufType::Float(DType::F32), count);
        let (tokens, rows) = (limits.chunk, limits.head_rows);
        let widest = config.hidden.max(config.intermediate).max(config.q_rows());
        let codes = if weights.has_codes() {
            Some(Int8Input {
                codes: device.alloc(BufType::U8, tokens * widest)?,
                scales: singles(tokens)?,
            })
        } else {
            None
        };
        let rounded = if weights.has_rounded() {
            Some(numbers(tokens * widest)?)
        } else {
            None
        };
        let vectors = limits.slots * limits.capacity * config.kv_heads;
        let layer = |_| LayerCache::new(device, limits.kv, *act, vectors, config.head_dim);
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        Ok(Self {
            plan: StepPlan::new(device, weights),
            hidden: numbers(tokens * config.hidden)?,
            normed: numbers(tokens * config.hidden)?,
            qkv: numbers(tokens * (config.q_rows() + 2 * config.kv_rows()))?,
            attended: numbers(tokens * config.q_rows())?,
            gate_up: numbers(tokens * 2 * config.intermediate)?,
            gated: numbers(tokens * config.intermediate)?,
            rounding: InputBufs { codes, rounded },
            prompt: Inputs::new(device, tokens, rows)?,
            feed: Inputs::new(device, limits.slots, limits.slots)?,
            steps: ids(1)?,
            picked: numbers(rows * config.hidden)?,
            picked_normed: numbers(rows * config.hidden)?,
            logits: singles(rows * config.vocab)?,
            targets: ids(rows)?,
            log_probs: singles(rows)?,
            rope: RopeTable::new(device, &frequencies, limits.capacity)?,
            kv: limits.kv,
            cache: (0..config.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Bytes of keys and values.
    pub(super) fn kv_bytes(&self) -> Bytes {
        Bytes(self.cache.iter().map(LayerCache::bytes).sum::<usize>() as u64)
    }

    /// Bytes of everything else.
    pub(super) fn activation_bytes(&self) -> Bytes {
        let buffers = [
            &self.hidden,
            &self.normed,
            &self.qkv,
            &self.attended,
            &self.gate_up,
            &self.gated,
            &self.steps,
            &self.picked,
            &self.picked_normed,
            &self.logits,
            &self.targets,
            &self.log_probs,
        ];
        let InputBufs { codes, rounded } = &self.rounding;
        let codes = codes
            .as_ref()
            .map_or(0, |c| c.codes.bytes() + c.scales.bytes())
            + rounded.as_ref().map_or(0, Buf::bytes);
        let buffers: usize = buffers.iter().map(|buf| buf.bytes()).sum();
        let inputs = self.prompt.bytes() + self.feed.bytes();
        Bytes((buffers + codes + inputs + self.rope.bytes()) as u64)
    }
}
