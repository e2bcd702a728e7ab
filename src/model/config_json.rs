//! `config.json` of both generations (before and since transformers 5) into a checked [`ModelConfig`].

use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Family, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, ModelConfig};
use super::quantised::method_of;
use super::rope::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::scheme::DType;

/// A precision that is none of its own.
const AUTO: &str = "auto";

/// Layers before the first with a window, where the file does not say: the library's default for Qwen.
const DEFAULT_WINDOW_LAYERS: u64 = 28;

impl ModelConfig {
    /// Reads the content of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] for a missing, ill-typed or impossible value; [`Error::Config`] for a model that is well described
    /// but not supported: another architecture, activation, attention window or RoPE rule.
    pub fn from_json(path: impl AsRef<Path>, value: &Value) -> Result<Self> {
        let path = path.as_ref();
        let Some(keys) = value.as_object() else {
            return Err(Error::data(path, "not a JSON object"));
        };
        let keys = Keys { path, keys };
        let (family, architecture) = keys.family()?;
        keys.refuse_unsupported(family)?;
        let heads = keys.size("num_attention_heads", MAX_WIDTH)?;
        let hidden = keys.size("hidden_size", MAX_WIDTH)?;
        // Of a Qwen3 the library takes one size, whatever the others are.
        let default_head = match family {
            Family::Qwen3 => 128,
            Family::Llama | Family::Qwen2 => hidden / heads,
        };
        let attention_bias = keys.flag("attention_bias")?;
        let config = Self {
            family,
            architecture,
            hidden,
            intermediate: keys.size("intermediate_size", MAX_WIDTH)?,
            layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", MAX_WIDTH, heads)?,
            head_dim: keys.size_or("head_dim", MAX_WIDTH, default_head)?,
            vocab: keys.size("vocab_size", MAX_VOCAB)?,
            max_positions: keys.size("max_position_embeddings", MAX_POSITIONS)?,
            norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            rope: keys.rope()?,
            tied: keys.flag("tie_word_embeddings")?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?,
            qk_norm: family == Family::Qwen3,
            dtype: keys.dtype()?.unwrap_or(DType::F32),
            bos: keys.ids("bos_token_id")?.first().copied(),
            eos: keys.ids("eos_token_id")?,
            quantization: keys.quantization(),
        };
        config.check(path)?;
        Ok(config)
    }
}

/// Whether a `config.json` names its precision; where it does not, the stored tensors say.
pub(super) fn names_dtype(config: &Value) -> bool {
    ["dtype", "torch_dtype"]
        .iter()
        .filter_map(|key| config.get(key))
        .any(|value| !value.is_null() && value != AUTO)
}

/// Token ids under `key`: one, a list, or none.
pub(super) fn token_ids(path: &Path, config: &Value, key: &str) -> Result<Vec<u32>> {
    let Some(keys) = config.as_object() else {
        return Err(Error::data(path, "not a JSON object"));
    };
    Keys { path, keys }.ids(key)
}

/// A JSON object with the file that it comes from. A key whose value is null counts as absent.
struct Keys<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    fn bad(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::data(self.path, format!("key '{key}': {what}"))
    }

    fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::Config(format!("{}: {what}", self.path.display()))
    }

    fn size(&self, key: &str, limit: usize) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| self.bad(key, "missing"))?;
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.filter(|&n| (1..=limit).contains(&n)).ok_or_else(|| {
            self.bad(
                key,
                format!("{value}: expected a whole number, 1 to {limit}"),
            )
        })
    }

    fn size_or(&self, key: &str, limit: usize, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |_| self.size(key, limit))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.get(key).ok_or_else(|| self.bad(key, "missing"))?;
        value
            .as_f64()
            .ok_or_else(|| self.bad(key, format!("{value}: expected a number")))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| {
            value
                .as_bool()
                .ok_or_else(|| self.bad(key, format!("{value}: expected true or false")))
        })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| self.bad(key, format!("{value}: expected a string")))
            })
            .transpose()
    }

    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.bad(key, format!("{value}: expected a token id")))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    fn family(&self) -> Result<(Family, String)> {
        let listed = self.get("architectures").and_then(|list| list.get(0));
        let name = match listed {
            Some(name) => name
                .as_str()
                .ok_or_else(|| self.bad("architectures", "expected strings"))?,
            None => self
                .text("model_type")?
                .ok_or_else(|| self.bad("architectures", "missing, and so is 'model_type'"))?,
        };
        let found = Family::ALL
            .into_iter()
            .find(|family| name == family.architecture() || name == family.name());
        let Some(family) = found else {
            let supported = Family::ALL.map(Family::architecture).join(", ");
            return Err(self.unsupported(format!(
                "the architecture '{name}' is not supported (supported: {supported})"
            )));
        };
        // Where both are there, transformers goes by the one or the other: nothing says which is meant.
        match self.text("model_type")? {
            Some(other) if listed.is_some() && other != family.name() => Err(self.bad(
                "model_type",
                format!(
                    "'{other}' is not the model type of '{name}' under 'architectures', which is '{}': correct either",
                    family.name()
                ),
            )),
            _ => Ok((family, family.architecture().to_owned())),
        }
    }

    fn refuse_unsupported(&self, family: Family) -> Result<()> {
        // One function by two names.
        let activation = self.text("hidden_act")?.unwrap_or("silu");
        if !["silu", "swish"].contains(&activation) {
            return Err(self.unsupported(format!(
                "the activation '{activation}' is not supported (supported: silu)"
            )));
        }
        if self.slides(family)? {
            return Err(self.unsupported("sliding-window attention is not supported"));
        }
        self.refuse_partial_rotation()
    }

    /// Whether the attention of any layer has a window. By the list of layers if there is one, else, for families that know
    /// a window at all, from layer `max_window_layers` on.
    fn slides(&self, family: Family) -> Result<bool> {
        if let Some(types) = self.get("layer_types").and_then(Value::as_array) {
            return Ok(types.iter().any(|of_layer| of_layer != "full_attention"));
        }
        if family == Family::Llama || !self.flag("use_sliding_window")? {
            return Ok(false);
        }
        let has_window = self.keys.get("sliding_window") != Some(&Value::Null);
        let first = match self.get("max_window_layers") {
            None => DEFAULT_WINDOW_LAYERS,
            Some(value) => value.as_u64().ok_or_else(|| {
                self.bad(
                    "max_window_layers",
                    format!("{value}: expected a number of layers"),
                )
            })?,
        };
        Ok(has_window && first < self.size("num_hidden_layers", MAX_LAYERS)? as u64)
    }

    fn refuse_partial_rotation(&self) -> Result<()> {
        if self.number_or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(self.unsupported("a partial rotary embedding is not supported"));
        }
        Ok(())
    }

    /// The object under `key`; one without keys counts as absent.
    fn nested(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok((!keys.is_empty()).then_some(Self {
                path: self.path,
                keys,
            })),
            Some(value) => Err(self.bad(key, format!("{value}: expected an object"))),
        }
    }

    /// As transformers 5 reads it: the rule under `rope_scaling`, or else under `rope_parameters`; its own
    /// `rope_theta`, or else the outer one. The other rule is read all the same: one that is not supported is refused
    /// wherever it is.
    fn rope(&self) -> Result<Rope> {
        let outer_theta = self.number_or("rope_theta", 10_000.0)?;
        let mut found = None;
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(rule) = self.nested(key)? {
                let theta = rule.number_or("rope_theta", outer_theta)?;
                let scaling = rule.rope_scaling()?;
                found.get_or_insert(Rope { theta, scaling });
            }
        }
        Ok(found.unwrap_or(Rope {
            theta: outer_theta,
            scaling: RopeScaling::None,
        }))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        self.refuse_partial_rotation()?;
        if let Some((layers, _)) = self.keys.iter().find(|(_, value)| value.is_object()) {
            return Err(self.unsupported(format!(
                "a RoPE rule for the layers '{layers}' alone is not supported"
            )));
        }
        let kind = match self.text("rope_type")? {
            Some(kind) => kind,
            None => self.text("type")?.unwrap_or("default"),
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: self.number("factor")?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: self.number("factor")?,
                low: self.number("low_freq_factor")?,
                high: self.number("high_freq_factor")?,
                original: self.size("original_max_position_embeddings", MAX_POSITIONS)?,
            }),
            other => Err(self.unsupported(format!(
                "the RoPE type '{other}' is not supported (supported: default, linear, llama3)"
            ))),
        }
    }

    fn dtype(&self) -> Result<Option<DType>> {
        // Whoever wrote "auto" left it to the stored tensors, as by silence.
        let named = |key| Ok::<_, Error>(self.text(key)?.filter(|&name| name != AUTO));
        let name = match named("dtype")? {
            Some(name) => Some(name),
            None => named("torch_dtype")?,
        };
        let Some(name) = name else { return Ok(None) };
        let short = name.strip_prefix("torch.").unwrap_or(name);
        let dtype = short.parse();
        dtype.map(Some).map_err(|e: String| self.unsupported(e))
    }

    fn quantization(&self) -> Option<String> {
        let found = self
            .get("quantization_config")
            .or_else(|| self.get("compression_config"));
        found.map(|settings| method_of(settings).unwrap_or("unnamed").to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
            "max_position_embeddings": 256, "eos_token_id": [2, 3], "torch_dtype": "float16",
        })
    }

    fn with(key: &str, value: Value) -> Result<ModelConfig> {
        let mut config = base();
        config[key] = value;
        ModelConfig::from_json("config.json", &config)
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let config = ModelConfig::from_json("config.json", &base()).unwrap();
        assert_eq!((config.kv_heads, config.head_dim), (4, 16));
        assert_eq!(config.rope.theta, 10_000.0);
        assert_eq!(
            (config.norm_eps, config.tied, config.bos),
            (1e-6, false, None)
        );
        assert_eq!(
            (config.dtype, config.eos.as_slice()),
            (DType::F16, &[2, 3][..])
        );
        // Another name of the same function.
        assert_eq!(with("hidden_act", json!("swish")).unwrap(), config);
        let qwen = with("architectures", json!(["Qwen3ForCausalLM"])).unwrap();
        assert_eq!((qwen.kv_heads, qwen.head_dim), (4, 128));
        // A precision that is left open.
        assert_eq!(
            with("torch_dtype", json!("auto")).unwrap().dtype,
            DType::F32
        );
        let mut both = base();
        both["dtype"] = json!("auto");
        let config = ModelConfig::from_json("config.json", &both).unwrap();
        assert_eq!(config.dtype, DType::F16);
    }

    #[test]
    fn impossible_values_are_data_errors_that_name_the_key() {
        for (key, value) in [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!(1u64 << 40)),
            ("num_hidden_layers", json!(1.5)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(15)),
            ("head_dim", json!(1 << 20)),
            ("rms_norm_eps", json!(-1.0)),
            ("rope_theta", json!("big")),
            ("rope_theta", json!(0.0)),
            ("eos_token_id", json!(100)),
            ("bos_token_id", json!(-1)),
            ("tie_word_embeddings", json!("yes")),
            ("rope_scaling", json!(7)),
            ("rope_scaling", json!({"type": "linear"})),
            ("rope_scaling", json!({"type": "linear", "factor": 0})),
            ("rope_scaling", json!({"rope_theta": "big"})),
            ("rope_parameters", json!([])),
            ("model_type", json!(7)),
            ("vocab_size", Value::Null),
        ] {
            let error = with(key, value.clone()).unwrap_err();
            assert_eq!(error.exit_code(), 65, "{key} = {value}: {error}");
        }
    }

    #[test]
    fn what_is_not_supported_is_a_config_error_that_names_it() {
        for (key, value, named) in [
            (
                "architectures",
                json!(["MambaForCausalLM"]),
                "MambaForCausalLM",
            ),
            ("hidden_act", json!("gelu"), "gelu"),
            (
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
                "sliding",
            ),
            (
                "rope_scaling",
                json!({"rope_type": "yarn", "factor": 4}),
                "yarn",
            ),
            (
                "rope_parameters",
                json!({"full_attention": {"rope_type": "default"}}),
                "'full_attention'",
            ),
            (
                "rope_parameters",
                json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
                "partial rotary",
            ),
            ("torch_dtype", json!("float8"), "float8"),
        ] {
            let error = with(key, value).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_window_counts_where_a_layer_has_it() {
        let qwen = |keys: Value| {
            let mut config = base();
            config["architectures"] = json!(["Qwen2ForCausalLM"]);
            config["use_sliding_window"] = json!(true);
            for (key, value) in keys.as_object().unwrap() {
                config[key] = value.clone();
            }
            ModelConfig::from_json("config.json", &config)
        };
        for none in [
            // The first layer with a window would be the 28th of two.
            json!({"sliding_window": 64}),
            json!({"sliding_window": 64, "max_window_layers": 2}),
            json!({"sliding_window": null, "max_window_layers": 0}),
            json!({"sliding_window": 64, "max_window_layers": 0, "use_sliding_window": false}),
            json!({"max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]}),
            // A Llama knows no window.
            json!({"max_window_layers": 0, "architectures": ["LlamaForCausalLM"]}),
        ] {
            assert!(qwen(none.clone()).is_ok(), "{none}");
        }
        for some in [
            json!({"max_window_layers": 1}),
            json!({"sliding_window": 64, "max_window_layers": 0}),
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
        ] {
            let error = qwen(some.clone()).unwrap_err();
            assert!(error.to_string().contains("sliding"), "{some}: {error}");
        }
    }

    #[test]
    fn rope_scaling_comes_before_rope_parameters_and_its_theta_before_the_outer_one() {
        let rope = |scaling: Value, parameters: Value| {
            let mut config = base();
            config["rope_theta"] = json!(2e4);
            config["rope_scaling"] = scaling;
            config["rope_parameters"] = parameters;
            ModelConfig::from_json("config.json", &config).map(|config| config.rope)
        };
        let linear = |factor: f64| json!({"rope_type": "linear", "factor": factor});
        let plain = json!({"rope_type": "default", "rope_theta": 5e5});
        let own_theta = json!({"type": "linear", "factor": 2, "rope_theta": 3e4});
        for (scaling, parameters, theta, factor) in [
            (Value::Null, Value::Null, 2e4, None),
            (linear(2.0), Value::Null, 2e4, Some(2.0)),
            (own_theta.clone(), Value::Null, 3e4, Some(2.0)),
            (Value::Null, plain.clone(), 5e5, None),
            (Value::Null, own_theta, 3e4, Some(2.0)),
            (linear(2.0), linear(2.0), 2e4, Some(2.0)),
            (linear(2.0), linear(4.0), 2e4, Some(2.0)),
            (linear(2.0), plain.clone(), 2e4, Some(2.0)),
            (plain.clone(), linear(4.0), 5e5, None),
            (json!({}), plain.clone(), 5e5, None),
        ] {
            let found = rope(scaling.clone(), parameters.clone()).unwrap();
            let scaled = factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor });
            let wanted = Rope {
                theta,
                scaling: scaled,
            };
            assert_eq!(found, wanted, "{scaling} {parameters}");
        }
        let yarn = json!({"rope_type": "yarn", "factor": 4.0});
        for (scaling, parameters) in [(yarn.clone(), plain.clone()), (plain, yarn)] {
            let error = rope(scaling, parameters).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{error}");
            assert!(error.to_string().contains("'yarn'"), "{error}");
        }
    }

    #[test]
    fn an_architecture_and_a_model_type_of_two_families_are_refused() {
        for other in ["qwen2", "mistral"] {
            let error = with("model_type", json!(other)).unwrap_err();
            assert_eq!(error.exit_code(), 65, "{error}");
            for named in ["'model_type'", other, "'LlamaForCausalLM'"] {
                assert!(error.to_string().contains(named), "{error}");
            }
        }
        assert!(with("model_type", json!("llama")).is_ok());
        // The one alone is enough.
        let mut config = base();
        config["architectures"] = Value::Null;
        config["model_type"] = json!("qwen3");
        let config = ModelConfig::from_json("config.json", &config).unwrap();
        assert_eq!(config.family, Family::Qwen3);
    }

    #[test]
    fn what_candle_is_told_reads_back_as_the_same_model() {
        for family in Family::ALL {
            let config = with("architectures", json!([family.architecture()])).unwrap();
            let told = config.to_json().unwrap();
            assert_eq!(ModelConfig::from_json("told", &told).unwrap(), config);
        }
        let linear = with("rope_scaling", json!({"type": "linear", "factor": 2})).unwrap();
        assert_eq!(linear.to_json().unwrap_err().exit_code(), 64);
    }
}
