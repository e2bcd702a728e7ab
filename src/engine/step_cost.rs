//! What a step must move and compute at least: the sum over the ops that the plan makes of it.

use super::source::InputPath;
use super::step_plan::{InputRoute, StepPlan};
use super::transformer::attention_op;
use super::weights::{DeviceWeights, Layer, Projection};
use crate::kernels::attention::{AppendAttend, Queries};
use crate::kernels::embed::Gather;
use crate::kernels::linear::{FusedLinear, Linear, Then, WeightData};
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::QuantizeAct;
use crate::kernels::rope::RopeAppend;
use crate::kernels::round_input::RoundInput;
use crate::kernels::sample::Argmax;
use crate::kernels::silu_mul::SiluMul;
use crate::kernels::{Cost, Device};
use crate::scheme::{DType, KvFormat};

/// What a step works on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepWork {
    /// Tokens, at least one.
    pub tokens: usize,
    /// How they stand in their slots.
    pub queries: Queries,
    /// Positions that they see, in all.
    pub seen: f64,
    /// Distinct ones among them.
    pub cached: f64,
    /// Rows of logits; the most likely token of each is looked for.
    pub logits: usize,
    /// Whether nothing but that token is wanted of a row, so that logits need not be stored: of a step of decoding.
    pub picks: bool,
}

impl DeviceWeights {
    /// The least that a step must move and compute by this plan on `device`, with the cache in the format `kv`: the sum of
    /// what its ops say. Biases, norms of heads, and the few bytes that name a step's tokens and places are left out.
    pub fn step_cost(
        &self,
        device: &Device,
        plan: StepPlan,
        work: &StepWork,
        kv: KvFormat,
    ) -> Cost {
        let costs = Costs {
            weights: self,
            device,
            plan,
            work,
            kv,
        };
        let layers = self.layers.iter().map(|layer| costs.layer(layer));
        costs.embedding() + layers.sum() + costs.head()
    }
}

/// The ops of one step.
struct Costs<'a> {
    weights: &'a DeviceWeights,
    device: &'a Device,
    plan: StepPlan,
    work: &'a StepWork,
    kv: KvFormat,
}

impl Costs<'_> {
    fn act(&self) -> DType {
        self.weights.act
    }

    fn embedding(&self) -> Cost {
        let config = &self.weights.config;
        let gather = Gather {
            count: self.work.tokens,
            rows: config.vocab,
            width: config.hidden,
        };
        let table = match &self.weights.embedding.data {
            WeightData::Plain(table) => table.dtype().unwrap_or(self.act()),
            _ => self.act(),
        };
        gather.cost(table, self.act())
    }

    fn layer(&self, layer: &Layer) -> Cost {
        let routes = self.plan.routes(layer, self.work.tokens);
        let silu = SiluMul {
            rows: self.work.tokens,
            width: self.weights.config.intermediate,
            layout: layer.gate_up_layout,
        };
        let gated = match (routes.gate_up, routes.down) {
            (InputRoute::Fused, _) => Cost::default(),
            (_, InputRoute::AsCodes) => silu.cost_to_codes(self.act()),
            _ => silu.cost(self.act()),
        };
        self.of_normed(&layer.qkv, routes.qkv, Then::Store)
            + self.attention()
            + self.added(&layer.output, routes.output)
            + self.of_normed(&layer.gate_up, routes.gate_up, Then::Gate)
            + gated
            + self.added(&layer.down, routes.down)
    }

    fn attention(&self) -> Cost {
        let StepWork {
            tokens,
            queries,
            seen,
            cached,
            ..
        } = *self.work;
        let (act, config) = (self.act(), &self.weights.config);
        // The capacity of the cache tells nothing of what is read of it.
        let op = attention_op(config, tokens, 0, queries, self.kv);
        let (one, apart) = (AppendAttend(op), RopeAppend(op));
        if self.plan.attention && one.is_one_launch(self.device, act) {
            one.cost(act, seen, cached)
        } else {
            apart.cost(act) + op.cost(act, seen, cached)
        }
    }

    /// A norm and the product of what it gives; of a fused launch also what becomes of that.
    fn of_normed(&self, projection: &Projection, route: InputRoute, then: Then) -> Cost {
        let act = self.act();
        let norm = self.norm(self.work.tokens);
        match route {
            InputRoute::Fused => {
                let op = FusedLinear {
                    codes: projection.input == InputPath::Codes,
                    ..FusedLinear::new(self.work.tokens, then)
                };
                op.cost(&projection.weight, act, true, act)
            }
            InputRoute::AsCodes => norm.cost_to_codes(act) + self.product(projection, false),
            InputRoute::Separate => {
                norm.cost(act) + self.rounding(projection) + self.product(projection, false)
            }
        }
    }

    /// A product that is added to what is there.
    fn added(&self, projection: &Projection, route: InputRoute) -> Cost {
        match route {
            InputRoute::Fused => {
                let op = FusedLinear {
                    codes: true,
                    accumulate: true,
                    ..FusedLinear::new(self.work.tokens, Then::Store)
                };
                op.cost(&projection.weight, self.act(), false, self.act())
            }
            InputRoute::AsCodes => self.product(projection, true),
            InputRoute::Separate => self.rounding(projection) + self.product(projection, true),
        }
    }

    /// The rounding of an input as an op of its own.
    fn rounding(&self, projection: &Projection) -> Cost {
        let (tokens, width) = (self.work.tokens, projection.weight.k);
        match projection.input {
            InputPath::Float => Cost::default(),
            InputPath::Codes => QuantizeAct { tokens, width }.cost(self.act()),
            InputPath::Rounded(rounding) => RoundInput {
                tokens,
                width,
                rounding,
            }
            .cost(self.act()),
        }
    }

    fn product(&self, projection: &Projection, accumulate: bool) -> Cost {
        let op = Linear {
            tokens: self.work.tokens,
            accumulate,
        };
        let input = (projection.input != InputPath::Codes).then_some(self.act());
        op.cost(&projection.weight, input, self.act())
    }

    fn norm(&self, rows: usize) -> RmsNorm {
        RmsNorm {
            rows,
            width: self.weights.config.hidden,
            eps: self.weights.config.norm_eps,
        }
    }

    /// From hidden states to tokens.
    fn head(&self) -> Cost {
        let StepWork { logits, picks, .. } = *self.work;
        if logits == 0 {
            return Cost::default();
        }
        let (config, act, weight) = (&self.weights.config, self.act(), self.weights.head());
        let argmax = Argmax {
            rows: logits,
            vocab: config.vocab,
        };
        if logits <= self.plan.head {
            let fused = |then| FusedLinear::new(logits, then).cost(weight, act, true, DType::F32);
            return if picks {
                fused(Then::Pick)
            } else {
                fused(Then::Store) + argmax.cost(DType::F32)
            };
        }
        let gather = Gather {
            count: logits,
            rows: self.work.tokens,
            width: config.hidden,
        };
        let product = Linear {
            tokens: logits,
            accumulate: false,
        };
        gather.cost(act, act)
            + self.norm(logits).cost(act)
            + product.cost(weight, Some(act), DType::F32)
            + argmax.cost(DType::F32)
    }
}

#[cfg(test)]
mod tests;
