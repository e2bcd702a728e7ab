//! The metadata of a GGUF file as a [`ModelConfig`].

use super::file::{GgufFile, Metadata};
use crate::error::{Error, Result};
use crate::model::config::{Family, ModelConfig};
use crate::model::rope::{Rope, RopeScaling};
use crate::scheme::DType;

/// Per-frequency divisors of the rotary embedding.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Reads and checks the configuration.
pub(super) fn read(file: &GgufFile) -> Result<ModelConfig> {
    let metadata = &file.metadata;
    if metadata.unsigned("split.count")?.is_some_and(|n| n > 1) {
        return Err(unsupported(
            metadata,
            "files in several parts are not supported: merge them first",
        ));
    }
    let architecture = metadata
        .text("general.architecture")?
        .ok_or_else(|| metadata.bad("general.architecture", "missing"))?;
    let found = Family::ALL
        .into_iter()
        .find(|family| family.name() == architecture);
    let Some(family) = found else {
        let supported = Family::ALL.map(Family::name).join(", ");
        return Err(unsupported(
            metadata,
            format!("the architecture '{architecture}' is not supported (supported: {supported})"),
        ));
    };
    let keys = Keys { metadata, family };
    keys.refuse_unsupported()?;
    let has = |name: &str| file.tensors.contains_key(name);

    let heads = keys.size("attention.head_count")?;
    let hidden = keys.size("embedding_length")?;
    let head_dim = keys.size_or("attention.key_length", hidden / heads)?;
    let mut config = ModelConfig {
        family,
        architecture: family.architecture().to_owned(),
        hidden,
        intermediate: keys.size("feed_forward_length")?,
        layers: keys.size("block_count")?,
        heads,
        kv_heads: keys.size_or("attention.head_count_kv", heads)?,
        head_dim,
        // The embedding has a row for every token, and may have more.
        vocab: file
            .tensors
            .get("token_embd.weight")
            .map_or(0, |tensor| tensor.shape[0]),
        max_positions: keys.size("context_length")?,
        norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6) as f32,
        rope: keys.rope(file, head_dim)?,
        tied: !has("output.weight"),
        // What a family always has is demanded of the file, not left out where the file lacks it.
        qkv_bias: family == Family::Qwen2 || has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: family == Family::Qwen3,
        dtype: precision(file),
        bos: keys.token("bos")?,
        eos: [keys.token("eos")?, keys.token("eot")?]
            .into_iter()
            .flatten()
            .collect(),
        quantization: quantization(file),
    };
    config.eos.dedup();
    config.check(metadata.path())?;
    Ok(config)
}

/// The precision to compute in where the user leaves it open: the matrices' own type, or bfloat16 for quantised ones, since
/// models are trained in it and some leave the range of binary16.
fn precision(file: &GgufFile) -> DType {
    let matrix = file.tensors.get("blk.0.ffn_gate.weight");
    matrix
        .and_then(|tensor| tensor.kind.plain)
        .unwrap_or(DType::BF16)
}

/// A file whose linear layers are in blocks is a quantised checkpoint.
fn quantization(file: &GgufFile) -> Option<String> {
    let mut tensors = file.tensors.iter();
    let blocks = tensors.any(|(name, tensor)| {
        name.starts_with("blk.") && tensor.shape.len() == 2 && tensor.kind.plain.is_none()
    });
    blocks.then(|| "gguf".to_owned())
}

fn unsupported(metadata: &Metadata, what: impl std::fmt::Display) -> Error {
    Error::Config(format!("{}: {what}", metadata.path().display()))
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    family: Family,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.family.name())
    }

    fn size(&self, key: &str) -> Result<usize> {
        let full = self.full(key);
        let size = self.metadata.unsigned(&full)?;
        let size = size.ok_or_else(|| self.metadata.bad(&full, "missing"))?;
        // The upper bounds come with the check of the whole configuration.
        usize::try_from(size)
            .ok()
            .filter(|&n| n > 0)
            .ok_or_else(|| self.metadata.bad(&full, format!("a value of {size}")))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.metadata.unsigned(&self.full(key))? {
            None => Ok(default),
            Some(_) => self.size(key),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.float(&self.full(key))
    }

    fn token(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = self.metadata.unsigned(&key)?;
        id.map(|id| {
            u32::try_from(id).map_err(|_| self.metadata.bad(&key, format!("a token id of {id}")))
        })
        .transpose()
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let set =
            |key: &str| Ok::<_, Error>(self.metadata.unsigned(&self.full(key))?.unwrap_or(0) > 0);
        let refused = if set("expert_count")? {
            "a mixture of experts"
        } else if set("attention.sliding_window")? {
            "sliding-window attention"
        } else {
            return Ok(());
        };
        Err(unsupported(
            self.metadata,
            format!("{refused} is not supported"),
        ))
    }

    fn rope(&self, file: &GgufFile, head_dim: usize) -> Result<Rope> {
        for key in ["rope.dimension_count", "attention.value_length"] {
            let size = self.size_or(key, head_dim)?;
            if size != head_dim {
                return Err(unsupported(
                    self.metadata,
                    format!(
                        "'{}' is {size}, only the head dimension {head_dim} is supported",
                        self.full(key)
                    ),
                ));
            }
        }
        Ok(Rope {
            theta: self.float("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: self.rope_scaling(file, head_dim)?,
        })
    }

    /// As llama.cpp reads it: a factor under either key, which the type `none` switches off, and divisors beside it.
    fn rope_scaling(&self, file: &GgufFile, head_dim: usize) -> Result<RopeScaling> {
        // The second is the older key, from before there was a type.
        let factor = match self.float("rope.scaling.factor")? {
            Some(factor) => factor,
            None => self.float("rope.scale_linear")?.unwrap_or(1.0),
        };
        // A factor without a type is linear, as older files have it.
        let kind = self
            .metadata
            .text(&self.full("rope.scaling.type"))?
            .unwrap_or("linear");
        let factor = match kind {
            "linear" => factor,
            "none" => 1.0,
            other => {
                return Err(unsupported(
                    self.metadata,
                    format!(
                        "the RoPE scaling '{other}' is not supported (supported: none, linear, {ROPE_FACTORS})"
                    ),
                ));
            }
        };
        if file.tensors.contains_key(ROPE_FACTORS) {
            let mut factors = read_factors(file, head_dim)?;
            factors.iter_mut().for_each(|f| *f *= factor as f32);
            return Ok(RopeScaling::Factors(factors));
        }
        Ok(if factor == 1.0 {
            RopeScaling::None
        } else {
            RopeScaling::Linear { factor }
        })
    }
}

fn read_factors(file: &GgufFile, head_dim: usize) -> Result<Vec<f32>> {
    let fault =
        |what: String| Error::data(file.blob.path(), format!("tensor '{ROPE_FACTORS}': {what}"));
    let Some(tensor) = file.tensors.get(ROPE_FACTORS) else {
        return Err(fault("missing".to_owned()));
    };
    if tensor.shape != [head_dim / 2] || tensor.kind.plain != Some(DType::F32) {
        return Err(fault(format!(
            "{} {:?}, expected F32 [{}]",
            tensor.kind.name,
            tensor.shape,
            head_dim / 2
        )));
    }
    let mut factors = vec![0.0f32; head_dim / 2];
    file.blob
        .read_exact_at(tensor.offset, bytemuck::cast_slice_mut(&mut factors))?;
    Ok(factors)
}
