//! A model's weights on the device.

use super::source::{InputPath, WeightSource};
use crate::kernels::Buf;
use crate::kernels::linear::{LinearWeight, WeightData};
use crate::kernels::silu_mul::GateUp;
use crate::model::ModelConfig;
use crate::scheme::{DType, Variant};
use crate::units::Bytes;

/// Everything of a model that a forward pass reads and never writes.
pub struct DeviceWeights {
    /// The model's shape.
    pub config: ModelConfig,
    /// What the linear layers were turned into.
    pub variant: Variant,
    /// The activation type, which norms and biases have too.
    pub act: DType,
    /// What the weights were made from.
    pub source: WeightSource,
    pub(super) embedding: LinearWeight,
    /// `None` where the head is the embedding.
    pub(super) head: Option<LinearWeight>,
    pub(super) norm: Buf,
    pub(super) layers: Vec<Layer>,
}

/// One decoder layer.
pub(super) struct Layer {
    pub(super) attention_norm: Buf,
    /// Query, key and value projections, one below the other.
    pub(super) qkv: Projection,
    /// Norms of each query and key head.
    pub(super) head_norms: Option<(Buf, Buf)>,
    pub(super) output: Projection,
    pub(super) mlp_norm: Buf,
    /// Gate and up projections in one matrix.
    pub(super) gate_up: Projection,
    /// Where they lie in it.
    pub(super) gate_up_layout: GateUp,
    pub(super) down: Projection,
}

/// A linear layer.
pub(super) struct Projection {
    pub(super) weight: LinearWeight,
    pub(super) bias: Option<Buf>,
    /// What happens to the input before the product.
    pub(super) input: InputPath,
}

impl Projection {
    fn bias_bytes(&self) -> usize {
        self.bias.as_ref().map_or(0, Buf::bytes)
    }
}

impl Layer {
    fn projections(&self) -> [&Projection; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }
}

impl DeviceWeights {
    /// Whether inputs of a layer's products become codes of eight bits on their way.
    pub fn inputs_become_codes(&self) -> bool {
        self.layers
            .iter()
            .flat_map(Layer::projections)
            .any(|projection| projection.input != InputPath::Float)
    }

    /// All resident bytes: codes, scales, plain weights, norms, biases; a tied head once.
    pub fn bytes(&self) -> Bytes {
        let other: usize = self
            .layers
            .iter()
            .map(|layer| {
                let heads = layer
                    .head_norms
                    .as_ref()
                    .map_or(0, |(q, k)| q.bytes() + k.bytes());
                let biases: usize = layer.projections().iter().map(|p| p.bias_bytes()).sum();
                layer.attention_norm.bytes() + layer.mlp_norm.bytes() + heads + biases
            })
            .sum();
        let tables = self.embedding.bytes() + self.head.as_ref().map_or(0, LinearWeight::bytes);
        Bytes(self.linear_bytes().0 + (other + tables + self.norm.bytes()) as u64)
    }

    /// Bytes of the decoder's linear layers, scales included, biases not.
    pub fn linear_bytes(&self) -> Bytes {
        let bytes = |layer: &Layer| {
            layer
                .projections()
                .iter()
                .map(|p| p.weight.bytes())
                .sum::<usize>()
        };
        Bytes(self.layers.iter().map(bytes).sum::<usize>() as u64)
    }

    /// Whether any product multiplies codes with codes.
    pub fn has_codes(&self) -> bool {
        self.any_input(|path| path == InputPath::Codes)
    }

    /// Whether the input of any product is rounded in its own type.
    pub(super) fn has_rounded(&self) -> bool {
        self.any_input(|path| matches!(path, InputPath::Rounded(_)))
    }

    fn any_input(&self, is: impl Fn(InputPath) -> bool) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| layer.projections().iter().any(|p| is(p.input)))
    }

    /// How many weight matrices, as the checkpoint names them, have which group; empty where nothing is quantised.
    pub fn groups(&self) -> std::collections::BTreeMap<usize, usize> {
        let mut groups = std::collections::BTreeMap::new();
        for layer in &self.layers {
            for (projection, matrices) in layer.projections().iter().zip([3, 1, 2, 1]) {
                let mut count = |weight: &LinearWeight, matrices| {
                    if let Some(group) = weight.group() {
                        *groups.entry(group).or_default() += matrices;
                    }
                };
                match &projection.weight.data {
                    WeightData::Apart(parts) => parts.iter().for_each(|part| count(part, 1)),
                    _ => count(&projection.weight, matrices),
                }
            }
        }
        groups
    }

    pub(super) fn head(&self) -> &LinearWeight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
