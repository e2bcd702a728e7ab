//! Which launches of a step are one: a pure choice from the weights and what the device is.

use std::fmt;

use super::source::InputPath;
use super::weights::{DeviceWeights, Layer, Projection};
use crate::kernels::Device;
use crate::kernels::linear::{FusedLinear, LinearWeight};
use crate::kernels::silu_mul::GateUp;

/// Which ops of a step share a launch, each up to so many tokens; 0 for never. More tokens go op by op. The results are the
/// same to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepPlan {
    /// A layer's first norm, and the rounding of what it gives to codes where that follows, with the product that gives
    /// queries, keys and values.
    pub qkv: usize,
    /// Its second norm with the product that gives gate and up, and with their product.
    pub gate_up: usize,
    /// The rounding of attention's results to codes with the product that takes them.
    pub output: usize,
    /// The same of what the gated activation gives.
    pub down: usize,
    /// The final norm with the head and, where nothing else is wanted, the choice of the most likely token.
    pub head: usize,
    /// The rotation of heads and the writing of the cache with attention, where its kernel can do that, whatever the number
    /// of tokens.
    pub attention: bool,
    /// Norms and gated activations with the rounding of what they give to codes, whatever the number of tokens.
    pub codes: bool,
}

impl StepPlan {
    /// Every op by itself.
    pub const UNFUSED: Self = Self {
        qkv: 0,
        gate_up: 0,
        output: 0,
        down: 0,
        head: 0,
        attention: false,
        codes: false,
    };

    /// What a device should do with these weights. On the CPU nothing is launched, so nothing is fused, and on a GPU that
    /// is told not to ([`Gpu::set_fused`](crate::kernels::gpu::Gpu::set_fused)) neither.
    pub fn new(device: &Device, weights: &DeviceWeights) -> Self {
        match device {
            Device::Gpu(gpu) if gpu.fuses() => {}
            Device::Cpu | Device::Gpu(_) => return Self::UNFUSED,
        }
        let most = |weight: &LinearWeight, codes| {
            FusedLinear::most_tokens(device, weight, weights.act, codes)
        };
        // What is rounded to numbers on its way to a product is not fused with it.
        let of = |projection: &Projection| match projection.input {
            InputPath::Float => most(&projection.weight, false),
            InputPath::Codes => most(&projection.weight, true),
            InputPath::Rounded(_) => 0,
        };
        // Without a norm there is something to fuse only where codes are made.
        let of_codes = |projection: &Projection| match projection.input {
            InputPath::Codes => of(projection),
            InputPath::Float | InputPath::Rounded(_) => 0,
        };
        let least = |of: &dyn Fn(&Layer) -> usize| weights.layers.iter().map(of).min().unwrap_or(0);
        let becomes_codes = |projection: &Projection| projection.input == InputPath::Codes;
        Self {
            qkv: least(&|layer| of(&layer.qkv)),
            gate_up: least(&|layer| match layer.gate_up_layout {
                GateUp::Eights => of(&layer.gate_up),
                GateUp::Halves => 0,
            }),
            output: least(&|layer| of_codes(&layer.output)),
            down: least(&|layer| of_codes(&layer.down)),
            head: most(weights.head(), false),
            codes: weights.layers.iter().any(|layer| {
                [&layer.qkv, &layer.gate_up, &layer.down]
                    .into_iter()
                    .any(becomes_codes)
            }),
            attention: true,
        }
    }
}

/// How the input of a product gets there from the op before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputRoute {
    /// What is between them is part of the product's launch.
    Fused,
    /// The op before leaves codes.
    AsCodes,
    /// The op before leaves numbers; where they are rounded, that is an op of its own.
    Separate,
}

/// The routes of the inputs of a layer's four products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Routes {
    pub(super) qkv: InputRoute,
    pub(super) output: InputRoute,
    /// Also says whether the gated activation is part of the launch.
    pub(super) gate_up: InputRoute,
    pub(super) down: InputRoute,
}

impl StepPlan {
    /// What a step of `tokens` tokens does in this layer: the forward pass runs it, and its cost is counted by it.
    pub(super) fn routes(self, layer: &Layer, tokens: usize) -> Routes {
        let leaves_codes =
            |projection: &Projection| self.codes && projection.input == InputPath::Codes;
        let route = |most_fused: usize, codes: bool| {
            if tokens <= most_fused {
                InputRoute::Fused
            } else if codes {
                InputRoute::AsCodes
            } else {
                InputRoute::Separate
            }
        };
        let gate_up = route(self.gate_up, leaves_codes(&layer.gate_up));
        Routes {
            qkv: route(self.qkv, leaves_codes(&layer.qkv)),
            // Attention leaves numbers.
            output: route(self.output, false),
            gate_up,
            down: match gate_up {
                // A gated activation within a product leaves numbers.
                InputRoute::Fused => route(self.down, false),
                // One by itself rounds them at no launch's cost.
                _ if leaves_codes(&layer.down) => InputRoute::AsCodes,
                _ => route(self.down, false),
            },
        }
    }
}

impl fmt::Display for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fused = [
            ("norm + q/k/v", self.qkv),
            ("norm + gate/up + SiLU", self.gate_up),
            ("codes + o", self.output),
            ("codes + down", self.down),
            ("norm + head + pick", self.head),
        ];
        let mut parts: Vec<String> = fused
            .iter()
            .filter(|(_, tokens)| *tokens > 0)
            .map(|(what, tokens)| {
                let s = if *tokens == 1 { "" } else { "s" };
                format!("{what} up to {tokens} token{s}")
            })
            .collect();
        if self.attention {
            parts.push("rotation + cache + attention".into());
        }
        if self.codes {
            parts.push("norm + codes, SiLU + codes".into());
        }
        if parts.is_empty() {
            return f.write_str("op by op");
        }
        write!(f, "fused: {}", parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_is_fused_and_up_to_where() {
        assert_eq!(StepPlan::UNFUSED.to_string(), "op by op");
        let plan = StepPlan {
            qkv: 5,
            gate_up: 4,
            output: 0,
            down: 0,
            head: 1,
            attention: true,
            codes: false,
        };
        assert_eq!(
            plan.to_string(),
            "fused: norm + q/k/v up to 5 tokens; norm + gate/up + SiLU up to 4 tokens; norm + head + pick up to 1 token; \
             rotation + cache + attention"
        );
        let codes = StepPlan {
            down: 2,
            codes: true,
            attention: true,
            ..StepPlan::UNFUSED
        };
        assert_eq!(
            codes.to_string(),
            "fused: codes + down up to 2 tokens; rotation + cache + attention; norm + codes, SiLU + codes"
        );
    }
}
