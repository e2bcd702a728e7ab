//! A configuration as the `config.json` of the transformers library.

use serde_json::{Value, json};

use super::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::scheme::DType;

impl ModelConfig {
    /// What transformers reads as this model, under the keys that it has had since before version 5.
    ///
    /// # Errors
    /// [`Error::Config`] for a rotary embedding that no key describes.
    pub fn to_transformers(&self) -> Result<Value> {
        let scaling = self.rope.scaling.to_json().ok_or_else(|| {
            Error::Config(
                "the model's rotary frequencies are a tensor of its GGUF file, which no config.json can describe: quantise \
                 the safetensors checkpoint that it was made of"
                    .into(),
            )
        })?;
        let dtype = match self.dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        };
        let eos = match self.eos.as_slice() {
            [one] => json!(one),
            [] => Value::Null,
            several => json!(several),
        };
        let mut config = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.name(),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            // By its shortest decimal form: 1e-5, not the f32 next to it.
            "rms_norm_eps": self.norm_eps.to_string().parse::<f64>().unwrap_or_default(),
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied,
            "torch_dtype": dtype,
            "bos_token_id": self.bos,
            "eos_token_id": eos,
            "hidden_act": "silu",
            "use_sliding_window": false,
        });
        if self.family != Family::Qwen2 {
            config["attention_bias"] = json!(self.qkv_bias);
        }
        if self.family == Family::Llama {
            config["mlp_bias"] = json!(self.mlp_bias);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same_model() {
        for family in Family::ALL {
            let given = json!({
                "architectures": [family.architecture()], "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                "vocab_size": 100, "max_position_embeddings": 256, "eos_token_id": [2, 3], "bos_token_id": 1,
                "torch_dtype": "float16", "rms_norm_eps": 1e-5, "rope_theta": 5e5,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
            });
            let config = ModelConfig::from_json("config.json", &given).unwrap();
            let written = config.to_transformers().unwrap();
            assert_eq!(written["rms_norm_eps"], json!(1e-5));
            assert_eq!(ModelConfig::from_json("written", &written).unwrap(), config);
        }
    }
}
