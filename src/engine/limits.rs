//! How much a run needs, computed before anything is allocated.

use super::source::WeightSource;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::kernels::attention::{Attention, Queries};
use crate::kernels::gpu::{ProductNeed, StepNeed};
use crate::model::ModelConfig;
use crate::scheme::{
    Activations, CodeFormat, DType, KvFormat, LevelForm, PackedForm, Variant, WeightScheme,
};
use crate::units::Bytes;

/// The most that an engine is asked to hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in the cache.
    pub slots: usize,
    /// Positions of each.
    pub capacity: usize,
    /// Tokens of one step; longer prompts go in chunks.
    pub chunk: usize,
    /// Rows of logits held at once.
    pub head_rows: usize,
    /// How the cache holds keys and values.
    pub kv: KvFormat,
}

/// Rows of logits that scoring a text holds at once, on the CPU and on a GPU: there the host waits for each batch of them.
const SCORED_ROWS: (usize, usize) = (64, 512);

impl Limits {
    /// Enough for `slots` sequences of `capacity` positions, prompts in chunks of `chunk`; the cache in the type of the
    /// activations.
    pub fn new(slots: usize, capacity: usize, chunk: usize) -> Self {
        let chunk = chunk.min(slots.saturating_mul(capacity)).max(slots);
        Self {
            slots,
            capacity,
            chunk,
            head_rows: slots.max(SCORED_ROWS.0.min(chunk)),
            kv: KvFormat::Auto,
        }
    }

    /// The same for scoring texts on `device`.
    pub fn for_scoring(self, device: &Device) -> Self {
        let rows = match device {
            Device::Cpu => SCORED_ROWS.0,
            Device::Gpu(_) => SCORED_ROWS.1,
        };
        Self {
            head_rows: self.slots.max(rows.min(self.chunk)),
            ..self
        }
    }

    /// The same with the cache in this format.
    pub const fn with_kv(self, kv: KvFormat) -> Self {
        Self { kv, ..self }
    }
}

/// Bytes on the device, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// All resident weights with their scales, norms and biases; a tied head once.
    pub weights: Bytes,
    /// The part of them that belongs to the decoder's linear layers.
    pub linear: Bytes,
    /// Keys and values.
    pub kv: Bytes,
    /// Scratch for activations, logits, positions and the rotary table.
    pub activations: Bytes,
    /// What launches on a GPU need beside their arguments. It stays with the device: measured, it is what the largest of
    /// its engines needed so far.
    pub workspace: Bytes,
}

impl Footprint {
    /// Everything.
    pub fn total(&self) -> Bytes {
        let parts = [self.weights, self.kv, self.scratch()];
        Bytes(parts.iter().fold(0, |sum, part| part.0.saturating_add(sum)))
    }

    /// What is neither weights nor cache.
    pub fn scratch(&self) -> Bytes {
        Bytes(self.activations.0.saturating_add(self.workspace.0))
    }

    /// What `config` in this variant will take under these limits on `device`; `source` is what its weights are made from.
    ///
    /// # Errors
    /// If no group of the variant fits a layer.
    pub fn predict(
        config: &ModelConfig,
        variant: &Variant,
        act: DType,
        source: &WeightSource,
        limits: Limits,
        device: &Device,
    ) -> Result<Self> {
        let (mut weights, mut linear) = (0, 0);
        for tensor in config.tensors() {
            let elements = usize::try_from(tensor.elements()).unwrap_or(usize::MAX);
            let bytes = if tensor.is_linear() {
                let bytes = matrix_bytes(
                    variant,
                    source,
                    &tensor.name,
                    tensor.shape[0],
                    tensor.shape[1],
                )?;
                linear += bytes;
                bytes
            } else if tensor.shape.len() == 2 {
                let plain = elements * table_dtype(config, variant).size();
                let shape = [tensor.shape[0], tensor.shape[1]];
                source
                    .kept(&tensor.name)
                    .map_or(plain, |kept| kept.bytes(shape))
            } else {
                elements * act.size()
            };
            weights += bytes;
        }
        // Limits come from the command line, so products of them may be anything; no device has 2^64 bytes.
        let positions = limits.slots as u128 * limits.capacity as u128;
        let position = config.kv_heads * limits.kv.vector_bytes(act.size(), config.head_dim);
        let kv = (2 * config.layers * position) as u128 * positions;
        let scratch = scratch_sizes(config, variant, source, act, limits);
        let scratch: u128 = scratch.iter().sum();
        let rope = 2 * limits.capacity as u128 * (config.head_dim / 2 * 4) as u128;
        let bytes = |n: u128| Bytes(u64::try_from(n).unwrap_or(u64::MAX));
        Ok(Self {
            weights: Bytes(weights as u64),
            linear: Bytes(linear as u64),
            kv: bytes(kv),
            activations: bytes(scratch + rope),
            workspace: match device {
                Device::Cpu => Bytes(0),
                Device::Gpu(gpu) => step_need(config, variant, act, source, limits)
                    .on(gpu)
                    .bytes(),
            },
        })
    }
}

/// What the steps of such a model launch.
pub(super) fn step_need(
    config: &ModelConfig,
    variant: &Variant,
    act: DType,
    source: &WeightSource,
    limits: Limits,
) -> StepNeed {
    let linear = ProductNeed {
        n: 0,
        k: config.hidden,
        tokens: limits.chunk,
        accumulates: false,
        plain: matches!(variant.weights, WeightScheme::Plain(_)),
        codes: variant.activations == Activations::Int8PerToken || source.has_codes(),
        ordered: source.has_orders(),
    };
    // Some matrices of a checkpoint may be quantised and others not.
    let kinds = [
        linear,
        ProductNeed {
            plain: true,
            ..linear
        },
    ];
    let kinds = match variant.weights {
        WeightScheme::AsIs => &kinds[..],
        _ => &kinds[..1],
    };
    let products = kinds.iter().flat_map(|&kind| {
        [
            ProductNeed {
                n: config.q_rows() + 2 * config.kv_rows(),
                ..kind
            },
            ProductNeed {
                n: config.hidden,
                k: config.q_rows(),
                accumulates: true,
                ..kind
            },
            ProductNeed {
                n: 2 * config.intermediate,
                ..kind
            },
            ProductNeed {
                n: config.hidden,
                k: config.intermediate,
                accumulates: true,
                ..kind
            },
            // The head, which quantisers leave alone and checkpoints need not.
            ProductNeed {
                n: config.vocab,
                tokens: limits.head_rows,
                plain: kind.plain || variant.weights != WeightScheme::AsIs,
                ..kind
            },
        ]
    });
    StepNeed {
        act,
        products: products.collect(),
        attention: Attention {
            tokens: limits.slots,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity: limits.capacity,
            kv: limits.kv,
            scale: 1.0,
            queries: Queries::Single,
        },
    }
}

/// The type of the embedding table and the output head unless they stay as they are: the variant's own where it is plain,
/// else the checkpoint's 16-bit type.
pub(super) fn table_dtype(config: &ModelConfig, variant: &Variant) -> DType {
    match (variant.weights, config.dtype) {
        (WeightScheme::Plain(dtype), _) => dtype,
        (_, DType::F32) => DType::BF16,
        (_, dtype) => dtype,
    }
}

fn matrix_bytes(
    variant: &Variant,
    source: &WeightSource,
    name: &str,
    n: usize,
    k: usize,
) -> Result<usize> {
    if let Some(kept) = source.kept(name) {
        return Ok(kept.bytes([n, k]));
    }
    let format = match variant.weights {
        WeightScheme::AsIs => return Err(Error::Internal(format!("nothing is known of '{name}'"))),
        WeightScheme::Plain(dtype) => return Ok(n * k * dtype.size()),
        WeightScheme::Int8 => CodeFormat::I8,
        WeightScheme::Int4 { .. } => CodeFormat::U4,
    };
    // Of a checkpoint that is made first, what it will hold.
    let form = PackedForm {
        n,
        k,
        format,
        group: variant.group_for(name, k)?,
        scale_rows: 1,
        scales: source.precision,
        levels: match variant.symmetric {
            true => LevelForm::Symmetric,
            false => LevelForm::Zeros,
        },
        ordered: false,
    };
    Ok(form.bytes())
}

/// Bytes of each scratch buffer, in the order of [`super::scratch::Scratch`].
fn scratch_sizes(
    config: &ModelConfig,
    variant: &Variant,
    source: &WeightSource,
    act: DType,
    limits: Limits,
) -> Vec<u128> {
    let widest = config.hidden.max(config.intermediate).max(config.q_rows()) as u128;
    let tokens = limits.chunk as u128;
    let mut sizes: Vec<u128> = [
        config.hidden,                          // residual stream
        config.hidden,                          // its norm
        config.q_rows() + 2 * config.kv_rows(), // queries, keys, values
        config.q_rows(),                        // what attention gives
        2 * config.intermediate,                // gate and up
        config.intermediate,                    // their product
    ]
    .map(|width| tokens * (width * act.size()) as u128)
    .to_vec();
    if variant.activations == Activations::Int8PerToken || source.has_codes() {
        sizes.extend([tokens * widest, tokens * 4]); // codes, scales
    }
    if source.has_rounded() {
        sizes.push(tokens * widest * act.size() as u128);
    }
    sizes.extend([tokens * 4; 3]); // tokens, slots, positions
    sizes.push(limits.slots as u128 * 16 + 4); // the same and row numbers for decode steps, and their count
    let rows = limits.head_rows as u128;
    sizes.extend([rows * (config.hidden * act.size()) as u128; 2]); // picked rows and their norm
    sizes.push(rows * (config.vocab * 4) as u128); // logits
    sizes.extend([rows * 4; 3]); // row numbers, targets or tokens, log-probabilities
    sizes
}

impl Limits {
    /// The most slots, up to `self.slots`, whose footprint fits into `free` bytes; 0 if not even one does.
    pub fn most_slots(self, free: Bytes, footprint: impl Fn(Self) -> Option<Footprint>) -> usize {
        let fits = |slots| {
            footprint(Self::new(slots, self.capacity, self.chunk).with_kv(self.kv))
                .is_some_and(|f| f.total() <= free)
        };
        let (mut low, mut high) = (0, self.slots);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}
