//! One step of the forward pass: tokens in, hidden states out; and the head over some of them.

use super::limits::Limits;
use super::source::InputPath;
use super::step_plan::StepPlan;
use super::weights::{DeviceWeights, Projection};
use crate::error::{Error, Result};
use crate::kernels::attention::{AppendAttend, Attention, LayerCache, Places, Queries};
use crate::kernels::embed::Gather;
use crate::kernels::linear::{FusedLinear, Input, Linear, LinearWeight, Normed, Then};
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::QuantizeAct;
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::round_input::RoundInput;
use crate::kernels::sample::Argmax;
use crate::kernels::silu_mul::SiluMul;
use crate::kernels::{Buf, BufType, Cost, Device};
use crate::model::ModelConfig;
use crate::scheme::{DType, KvFormat};
use crate::units::Bytes;

/// Everything that a forward pass writes, allocated once.
pub(super) struct Scratch {
    pub(super) plan: StepPlan,
    hidden: Buf,
    normed: Buf,
    qkv: Buf,
    attended: Buf,
    gate_up: Buf,
    gated: Buf,
    rounding: InputBufs,
    /// Inputs that the host writes.
    pub(super) prompt: Inputs,
    /// Inputs of decode steps, which the step before leaves here.
    pub(super) feed: Inputs,
    /// Decode steps so far: names the line of the mailbox.
    pub(super) steps: Buf,
    picked: Buf,
    picked_normed: Buf,
    pub(super) logits: Buf,
    pub(super) targets: Buf,
    pub(super) log_probs: Buf,
    rope: RopeTable,
    kv: KvFormat,
    cache: Vec<LayerCache>,
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
struct InputBufs {
    codes: Option<Int8Input>,
    rounded: Option<Buf>,
}

/// Codes and scales of a product's input.
struct Int8Input {
    codes: Buf,
    scales: Buf,
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

    /// Runs the first `count` tokens of `source` through all layers. `queries` says how they stand in their slots.
    pub(super) fn forward(
        &mut self,
        device: &Device,
        weights: &DeviceWeights,
        source: Source,
        count: usize,
        capacity: usize,
        queries: Queries,
    ) -> Result<()> {
        let config = &weights.config;
        let gather = Gather {
            count,
            rows: config.vocab,
            width: config.hidden,
        };
        let crate::kernels::linear::WeightData::Plain(table) = &weights.embedding.data else {
            unreachable!("embeddings are plain");
        };
        let tokens = match source {
            Source::Prompt => &self.prompt.tokens,
            Source::Feed => &self.feed.tokens,
        };
        gather.run(device, tokens, table, &mut self.hidden)?;
        for layer in 0..config.layers {
            self.layer(
                device,
                weights,
                source,
                layer,
                attention_op(config, count, capacity, queries, self.kv),
            )?;
        }
        Ok(())
    }

    fn layer(
        &mut self,
        device: &Device,
        weights: &DeviceWeights,
        source: Source,
        index: usize,
        attention: Attention,
    ) -> Result<()> {
        let config = &weights.config;
        let count = attention.tokens;
        let layer = &weights.layers[index];
        let step = Step {
            device,
            tokens: count,
            codes: self.plan.codes,
        };
        let inputs = match source {
            Source::Prompt => &self.prompt,
            Source::Feed => &self.feed,
        };
        let places = Places {
            slots: &inputs.slots,
            positions: &inputs.positions,
        };
        let head_norms = layer.head_norms.as_ref().map(|(q, k)| HeadNorms {
            q,
            k,
            eps: config.norm_eps,
        });

        let input = Normed::all(&self.hidden, &layer.attention_norm, config.norm_eps);
        if count <= self.plan.qkv {
            step.fused(input, &layer.qkv, Then::Store, &mut self.qkv)?;
        } else {
            let between = (&mut self.normed, &mut self.rounding);
            step.project_normed(input, between, &layer.qkv, &mut self.qkv)?;
        }
        let cache = &mut self.cache[index];
        let (qkv, attended) = (&mut self.qkv, &mut self.attended);
        if self.plan.attention {
            AppendAttend(attention)
                .run(device, qkv, head_norms, &self.rope, places, cache, attended)?;
        } else {
            RopeAppend(attention).run(device, qkv, head_norms, &self.rope, places, cache)?;
            attention.run(device, qkv, places, cache, attended)?;
        }
        if count <= self.plan.output {
            step.fused_codes(&self.attended, &layer.output, &mut self.hidden)?;
        } else {
            step.project(
                &self.attended,
                &mut self.rounding,
                &layer.output,
                true,
                &mut self.hidden,
            )?;
        }

        let input = Normed::all(&self.hidden, &layer.mlp_norm, config.norm_eps);
        if count <= self.plan.gate_up {
            step.fused(input, &layer.gate_up, Then::Gate, &mut self.gated)?;
        } else {
            let between = (&mut self.normed, &mut self.rounding);
            step.project_normed(input, between, &layer.gate_up, &mut self.gate_up)?;
            let silu = SiluMul {
                rows: count,
                width: config.intermediate,
                layout: layer.gate_up_layout,
            };
            let codes = step.codes_of(&layer.down, &mut self.rounding);
            if let Some(Int8Input { codes, scales }) = codes {
                silu.run_to_codes(device, &self.gate_up, codes, scales)?;
                let input = Input::Int8 { codes, scales };
                return step.product(input, &layer.down, true, &mut self.hidden);
            }
            silu.run(device, &self.gate_up, &mut self.gated)?;
        }
        if count <= self.plan.down {
            return step.fused_codes(&self.gated, &layer.down, &mut self.hidden);
        }
        step.project(
            &self.gated,
            &mut self.rounding,
            &layer.down,
            true,
            &mut self.hidden,
        )
    }

    /// Logits (f32, `[count, vocab]`) of the hidden states whose numbers are the first `rows` of `source`.
    pub(super) fn head(
        &mut self,
        device: &Device,
        weights: &DeviceWeights,
        source: Source,
        count: usize,
    ) -> Result<()> {
        let config = &weights.config;
        let rows = match source {
            Source::Prompt => &self.prompt.rows,
            Source::Feed => &self.feed.rows,
        };
        if count <= self.plan.head {
            let fused = FusedLinear::new(count, Then::Store);
            let input = Normed {
                x: &self.hidden,
                rows: Some(rows),
                weight: Some(&weights.norm),
                eps: config.norm_eps,
            };
            return fused.run(device, input, weights.head(), None, &mut self.logits);
        }
        let gather = Gather {
            count,
            rows: self.hidden.len() / config.hidden,
            width: config.hidden,
        };
        gather.run(device, rows, &self.hidden, &mut self.picked)?;
        let norm = RmsNorm {
            rows: count,
            width: config.hidden,
            eps: config.norm_eps,
        };
        norm.run(device, &self.picked, &weights.norm, &mut self.picked_normed)?;
        let product = Linear {
            tokens: count,
            accumulate: false,
        };
        product.run(
            device,
            Input::Float(&self.picked_normed),
            weights.head(),
            None,
            &mut self.logits,
        )
    }

    /// The most likely token after each of the hidden states whose numbers are in `rows`, left in `targets` on the device.
    /// The logits need not have been computed as a whole.
    pub(super) fn pick(
        &mut self,
        device: &Device,
        weights: &DeviceWeights,
        source: Source,
        count: usize,
    ) -> Result<()> {
        if count > self.plan.head {
            self.head(device, weights, source, count)?;
            let pick = Argmax {
                rows: count,
                vocab: weights.config.vocab,
            };
            return pick.run(device, &self.logits, &mut self.targets);
        }
        let fused = FusedLinear::new(count, Then::Pick);
        let input = Normed {
            x: &self.hidden,
            rows: Some(match source {
                Source::Prompt => &self.prompt.rows,
                Source::Feed => &self.feed.rows,
            }),
            weight: Some(&weights.norm),
            eps: weights.config.norm_eps,
        };
        fused.run(device, input, weights.head(), None, &mut self.targets)
    }
}

fn attention_op(
    config: &ModelConfig,
    tokens: usize,
    capacity: usize,
    queries: Queries,
    kv: KvFormat,
) -> Attention {
    Attention {
        tokens,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        capacity,
        kv,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
        queries,
    }
}

/// What the products of a layer have in common.
struct Step<'a> {
    device: &'a Device,
    tokens: usize,
    /// Whether inputs become codes where they are computed.
    codes: bool,
}

impl Step<'_> {
    /// The norm of `input`, its rounding to codes where the layer says so, the layer, and what follows it, in one launch.
    fn fused(
        &self,
        input: Normed<'_>,
        projection: &Projection,
        then: Then,
        out: &mut Buf,
    ) -> Result<()> {
        let op = FusedLinear {
            codes: projection.input == InputPath::Codes,
            ..FusedLinear::new(self.tokens, then)
        };
        let (weight, bias) = (&projection.weight, projection.bias.as_ref());
        op.run(self.device, input, weight, bias, out)
    }

    /// The rounding of `x` to codes and a linear layer, whose results are added to `out`, in one launch.
    fn fused_codes(&self, x: &Buf, projection: &Projection, out: &mut Buf) -> Result<()> {
        let op = FusedLinear {
            codes: true,
            accumulate: true,
            ..FusedLinear::new(self.tokens, Then::Store)
        };
        let (weight, bias) = (&projection.weight, projection.bias.as_ref());
        op.run(self.device, Normed::as_is(x), weight, bias, out)
    }

    /// The norm of `input`, then a linear layer, by way of buffers for the norm and for what it is rounded to.
    fn project_normed(
        &self,
        input: Normed<'_>,
        (normed, rounding): (&mut Buf, &mut InputBufs),
        projection: &Projection,
        out: &mut Buf,
    ) -> Result<()> {
        let norm = RmsNorm {
            rows: self.tokens,
            width: projection.weight.k,
            eps: input.eps,
        };
        let of_norm = input
            .weight
            .ok_or_else(|| Error::Internal("an input to be normed without a norm".into()))?;
        if let Some(Int8Input { codes, scales }) = self.codes_of(projection, rounding) {
            norm.run_to_codes(self.device, input.x, of_norm, codes, scales)?;
            let input = Input::Int8 { codes, scales };
            return self.product(input, projection, false, out);
        }
        norm.run(self.device, input.x, of_norm, normed)?;
        self.project(normed, rounding, projection, false, out)
    }

    /// Where the input of a layer becomes codes as it is computed, if it does.
    fn codes_of<'b>(
        &self,
        projection: &Projection,
        rounding: &'b mut InputBufs,
    ) -> Option<&'b mut Int8Input> {
        let fused = self.codes && projection.input == InputPath::Codes;
        rounding.codes.as_mut().filter(|_| fused)
    }

    /// A linear layer; its input is rounded first where the layer says so.
    fn project(
        &self,
        x: &Buf,
        rounding: &mut InputBufs,
        projection: &Projection,
        accumulate: bool,
        out: &mut Buf,
    ) -> Result<()> {
        let (tokens, width) = (self.tokens, projection.weight.k);
        match (projection.input, rounding) {
            (InputPath::Float, _) => self.product(Input::Float(x), projection, accumulate, out),
            (
                InputPath::Codes,
                InputBufs {
                    codes: Some(Int8Input { codes, scales }),
                    ..
                },
            ) => {
                QuantizeAct { tokens, width }.run(self.device, x, codes, scales)?;
                let input = Input::Int8 { codes, scales };
                self.product(input, projection, accumulate, out)
            }
            (
                InputPath::Rounded(rule),
                InputBufs {
                    rounded: Some(rounded),
                    ..
                },
            ) => {
                let op = RoundInput {
                    tokens,
                    width,
                    rounding: rule,
                };
                op.run(self.device, x, rounded)?;
                self.product(Input::Float(rounded), projection, accumulate, out)
            }
            _ => Err(Error::Internal("no room for rounded inputs".into())),
        }
    }

    fn product(
        &self,
        input: Input<'_>,
        projection: &Projection,
        accumulate: bool,
        out: &mut Buf,
    ) -> Result<()> {
        let op = Linear {
            tokens: self.tokens,
            accumulate,
        };
        let (weight, bias) = (&projection.weight, projection.bias.as_ref());
        op.run(self.device, input, weight, bias, out)
    }
}

impl DeviceWeights {
    /// The least that a step of `tokens` tokens must move and compute by this plan when they see `seen` positions in all, of
    /// which `cached` are distinct, with logits for `logits` of them and the cache in the format `kv`.
    pub fn step_cost(
        &self,
        plan: StepPlan,
        tokens: usize,
        seen: f64,
        cached: f64,
        logits: usize,
        kv: KvFormat,
    ) -> Cost {
        let (config, act) = (&self.config, self.act);
        let attention = attention_op(config, tokens, 0, Queries::Runs, kv);
        let norm = RmsNorm {
            rows: tokens,
            width: config.hidden,
            eps: config.norm_eps,
        };
        let product = |w: &LinearWeight, accumulate| Linear { tokens, accumulate }.cost(w, act);
        let fused = |w: &LinearWeight, then| FusedLinear::new(tokens, then).cost(w, act, act);
        let layer = |layer: &super::weights::Layer| {
            let qkv = if tokens <= plan.qkv {
                fused(&layer.qkv.weight, Then::Store)
            } else {
                norm.cost(act) + product(&layer.qkv.weight, false)
            };
            let attend = if plan.attention {
                AppendAttend(attention).cost(act, seen, cached)
            } else {
                RopeAppend(attention).cost(act) + attention.cost(act, seen, cached)
            };
            let silu = SiluMul {
                rows: tokens,
                width: config.intermediate,
                layout: layer.gate_up_layout,
            };
            let gate_up = if tokens <= plan.gate_up {
                fused(&layer.gate_up.weight, Then::Gate)
            } else {
                norm.cost(act) + product(&layer.gate_up.weight, false) + silu.cost(act)
            };
            [
                qkv,
                attend,
                product(&layer.output.weight, true),
                gate_up,
                product(&layer.down.weight, true),
            ]
            .into_iter()
            .sum::<Cost>()
        };
        let gather = Gather {
            count: tokens,
            rows: config.vocab,
            width: config.hidden,
        };
        let head = if logits <= plan.head {
            FusedLinear::new(logits, Then::Pick).cost(self.head(), act, DType::F32)
        } else {
            Linear {
                tokens: logits,
                accumulate: false,
            }
            .cost(self.head(), DType::F32)
        };
        gather.cost(act, act) + self.layers.iter().map(layer).sum() + head
    }
}
