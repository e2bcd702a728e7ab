//! One step of the forward pass: tokens in, hidden states out; and the head over some of them.

use super::scratch::{InputBufs, Int8Input, Scratch, Source, no_room};
use super::source::InputPath;
use super::step_plan::InputRoute;
use super::weights::{DeviceWeights, Projection};
use crate::error::{Error, Result};
use crate::kernels::attention::{AppendAttend, Attention, Places, Queries};
use crate::kernels::embed::Gather;
use crate::kernels::linear::{FusedLinear, Input, Linear, Normed, Then};
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::QuantizeAct;
use crate::kernels::rope::{HeadNorms, RopeAppend};
use crate::kernels::round_input::RoundInput;
use crate::kernels::sample::Argmax;
use crate::kernels::silu_mul::SiluMul;
use crate::kernels::{Buf, Device};
use crate::model::ModelConfig;
use crate::scheme::KvFormat;

impl Scratch {
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
        let routes = self.plan.routes(layer, count);
        let products = Products {
            device,
            tokens: count,
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
        if routes.qkv == InputRoute::Fused {
            products.fused(input, &layer.qkv, Then::Store, &mut self.qkv)?;
        } else {
            let between = (&mut self.normed, &mut self.rounding);
            products.project_normed(input, between, (&layer.qkv, routes.qkv), &mut self.qkv)?;
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
        let output = (&layer.output, routes.output);
        products.project_added(&self.attended, &mut self.rounding, output, &mut self.hidden)?;

        let input = Normed::all(&self.hidden, &layer.mlp_norm, config.norm_eps);
        if routes.gate_up == InputRoute::Fused {
            products.fused(input, &layer.gate_up, Then::Gate, &mut self.gated)?;
        } else {
            let between = (&mut self.normed, &mut self.rounding);
            let gate_up = (&layer.gate_up, routes.gate_up);
            products.project_normed(input, between, gate_up, &mut self.gate_up)?;
            let silu = SiluMul {
                rows: count,
                width: config.intermediate,
                layout: layer.gate_up_layout,
            };
            if routes.down == InputRoute::AsCodes {
                let Int8Input { codes, scales } = self.rounding.codes()?;
                silu.run_to_codes(device, &self.gate_up, codes, scales)?;
            } else {
                silu.run(device, &self.gate_up, &mut self.gated)?;
            }
        }
        let down = (&layer.down, routes.down);
        products.project_added(&self.gated, &mut self.rounding, down, &mut self.hidden)
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

pub(super) fn attention_op(
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
struct Products<'a> {
    device: &'a Device,
    tokens: usize,
}

impl Products<'_> {
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

    /// The norm of `input`, then a linear layer, by way of buffers for the norm and for what it is rounded to.
    fn project_normed(
        &self,
        input: Normed<'_>,
        (normed, rounding): (&mut Buf, &mut InputBufs),
        (projection, route): (&Projection, InputRoute),
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
        if route == InputRoute::AsCodes {
            let Int8Input { codes, scales } = rounding.codes()?;
            norm.run_to_codes(self.device, input.x, of_norm, codes, scales)?;
            let input = Input::Int8 { codes, scales };
            return self.product(input, projection, false, out);
        }
        norm.run(self.device, input.x, of_norm, normed)?;
        self.project(normed, rounding, projection, false, out)
    }

    /// A linear layer of `x`, or of the codes that the op before has made of it, whose results are added to `out`.
    fn project_added(
        &self,
        x: &Buf,
        rounding: &mut InputBufs,
        (projection, route): (&Projection, InputRoute),
        out: &mut Buf,
    ) -> Result<()> {
        match route {
            InputRoute::Fused => {
                let op = FusedLinear {
                    codes: true,
                    accumulate: true,
                    ..FusedLinear::new(self.tokens, Then::Store)
                };
                let (weight, bias) = (&projection.weight, projection.bias.as_ref());
                op.run(self.device, Normed::as_is(x), weight, bias, out)
            }
            InputRoute::AsCodes => {
                let Int8Input { codes, scales } = rounding.codes()?;
                let input = Input::Int8 { codes, scales };
                self.product(input, projection, true, out)
            }
            InputRoute::Separate => self.project(x, rounding, projection, true, out),
        }
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
        match projection.input {
            InputPath::Float => self.product(Input::Float(x), projection, accumulate, out),
            InputPath::Codes => {
                let Int8Input { codes, scales } = rounding.codes()?;
                QuantizeAct { tokens, width }.run(self.device, x, codes, scales)?;
                let input = Input::Int8 { codes, scales };
                self.product(input, projection, accumulate, out)
            }
            InputPath::Rounded(rule) => {
                let rounded = rounding.rounded.as_mut().ok_or_else(no_room)?;
                let op = RoundInput {
                    tokens,
                    width,
                    rounding: rule,
                };
                op.run(self.device, x, rounded)?;
                self.product(Input::Float(rounded), projection, accumulate, out)
            }
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
