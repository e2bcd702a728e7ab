//! The shape of a model: everything about it that is not a weight.

use std::path::Path;

use serde_json::{Value, json};

use super::rope::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::scheme::DType;

// Far beyond any model, small enough that no product of a few of them overflows 64 bits.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_LAYERS: usize = 1 << 12;
pub(super) const MAX_VOCAB: usize = 1 << 24;
pub(super) const MAX_POSITIONS: usize = 1 << 31;

/// A decoder architecture with one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2, 3 and their descendants.
    Llama,
    /// Qwen2 and Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3: norms on queries and keys instead.
    Qwen3,
}

impl Family {
    /// Every family, in the order of messages.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The name as `model_type` and as a GGUF architecture.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The class name in the `architectures` list of a `config.json`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// The shape and constants of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family, which says what a layer computes.
    pub family: Family,
    /// The architecture's own name for itself, as in `LlamaForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Components of a head; even. Not always `hidden / heads`.
    pub head_dim: usize,
    /// Rows of the embedding, including padding that no token uses.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the output head is the embedding matrix.
    pub tied: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head before rotation.
    pub qk_norm: bool,
    /// The checkpoint's own precision.
    pub dtype: DType,
    /// The token that begins a text, where the model has one.
    pub bos: Option<u32>,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
    /// The method of a quantised checkpoint (`gptq`, `awq`, `compressed-tensors`, ...).
    pub quantization: Option<String>,
}

/// A tensor that a checkpoint must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the transformers library.
    pub name: String,
    /// Its shape, outputs before inputs.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Whether this is the matrix of a decoder's linear layer: what quantisation applies to.
    pub fn is_linear(&self) -> bool {
        self.name.ends_with("_proj.weight")
    }
}

impl ModelConfig {
    /// Rows of the query projection: `heads * head_dim`.
    pub const fn q_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key projection, and of the value projection: `kv_heads * head_dim`.
    pub const fn kv_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// All parameters; a tied output head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::elements).sum()
    }

    /// Parameters of the decoder's linear layers: what quantisation applies to.
    pub fn linear_parameters(&self) -> u64 {
        let tensors = self.tensors();
        let linear = tensors.iter().filter(|t| t.is_linear());
        linear.map(TensorSpec::elements).sum()
    }

    /// Bytes of keys and values that one token adds to the cache, all layers together.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> u64 {
        2 * (self.layers * self.kv_rows() * dtype.size()) as u64
    }

    /// Every tensor that a checkpoint of this shape holds, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = vec![TensorSpec::new(
            "model.embed_tokens.weight",
            &[self.vocab, self.hidden],
        )];
        for layer in 0..self.layers {
            self.push_layer(&format!("model.layers.{layer}"), &mut all);
        }
        all.push(TensorSpec::new("model.norm.weight", &[self.hidden]));
        if !self.tied {
            all.push(TensorSpec::new(
                "lm_head.weight",
                &[self.vocab, self.hidden],
            ));
        }
        all
    }

    fn push_layer(&self, prefix: &str, all: &mut Vec<TensorSpec>) {
        let mut push = |name: &str, shape: &[usize]| {
            all.push(TensorSpec::new(format!("{prefix}.{name}"), shape));
        };
        push("input_layernorm.weight", &[self.hidden]);
        for (name, rows) in [
            ("q", self.q_rows()),
            ("k", self.kv_rows()),
            ("v", self.kv_rows()),
        ] {
            push(
                &format!("self_attn.{name}_proj.weight"),
                &[rows, self.hidden],
            );
            if self.qkv_bias {
                push(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        if self.qk_norm {
            push("self_attn.q_norm.weight", &[self.head_dim]);
            push("self_attn.k_norm.weight", &[self.head_dim]);
        }
        push("self_attn.o_proj.weight", &[self.hidden, self.q_rows()]);
        if self.o_bias {
            push("self_attn.o_proj.bias", &[self.hidden]);
        }
        push("post_attention_layernorm.weight", &[self.hidden]);
        for (name, rows, columns) in [
            ("gate", self.intermediate, self.hidden),
            ("up", self.intermediate, self.hidden),
            ("down", self.hidden, self.intermediate),
        ] {
            push(&format!("mlp.{name}_proj.weight"), &[rows, columns]);
            if self.mlp_bias {
                push(&format!("mlp.{name}_proj.bias"), &[rows]);
            }
        }
    }

    /// Checks that the values fit together, whatever file they come from.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let bad = |what: String| Err(Error::data(path, what));
        let sizes = [
            ("hidden size", self.hidden, MAX_WIDTH),
            ("intermediate size", self.intermediate, MAX_WIDTH),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of heads", self.heads, MAX_WIDTH),
            ("number of key-value heads", self.kv_heads, MAX_WIDTH),
            ("head dimension", self.head_dim, MAX_WIDTH),
            ("vocabulary", self.vocab, MAX_VOCAB),
            ("number of positions", self.max_positions, MAX_POSITIONS),
        ];
        for (name, size, limit) in sizes {
            if size == 0 || size > limit {
                return bad(format!("a {name} of {size}: expected 1 to {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!(
                "{} heads do not divide among {} key-value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("the head dimension {} is odd", self.head_dim));
        }
        if self.q_rows() > MAX_WIDTH {
            return bad(format!(
                "{} heads of {} are too wide",
                self.heads, self.head_dim
            ));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("a norm epsilon of {}", self.norm_eps));
        }
        if let Some(id) = self
            .bos
            .iter()
            .chain(&self.eos)
            .find(|&&id| id as usize >= self.vocab)
        {
            return bad(format!(
                "the token id {id} is outside the vocabulary of {}",
                self.vocab
            ));
        }
        if !self.rope.is_sound() {
            return bad(format!("impossible RoPE parameters: {:?}", self.rope));
        }
        Ok(())
    }

    /// The configuration under the keys that candle-transformers reads (those of transformers before version 5).
    ///
    /// # Errors
    /// [`Error::Config`] for a property that candle's models would silently leave out: their results would be wrong.
    pub fn to_json(&self) -> Result<Value> {
        let obstacle = match (&self.rope.scaling, self.family) {
            _ if self.family == Family::Llama
                && (self.qkv_bias || self.o_bias || self.mlp_bias) =>
            {
                Some("biases in a Llama model")
            }
            _ if self.family != Family::Qwen3 && self.q_rows() != self.hidden => {
                Some("a head_dim other than hidden_size / heads")
            }
            (RopeScaling::None, _) | (RopeScaling::Llama3 { .. }, Family::Llama) => None,
            _ => Some("this RoPE scaling"),
        };
        if let Some(obstacle) = obstacle {
            return Err(Error::Config(format!(
                "candle-transformers does not implement {obstacle} for {}",
                self.architecture
            )));
        }
        let scaling = self.rope.scaling.to_json();
        Ok(json!({
            "architectures": [self.architecture],
            "model_type": self.family.name(),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": f64::from(self.norm_eps),
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.o_bias,
            "mlp_bias": self.mlp_bias,
            "torch_dtype": torch_name(self.dtype),
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "hidden_act": "silu",
            "use_sliding_window": false,
            // candle's Qwen2 wants a number even where the window is off.
            "sliding_window": self.max_positions,
            "max_window_layers": self.layers,
        }))
    }
}

const fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
    }
}
