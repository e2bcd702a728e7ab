//! `quantization_config` of compressed-tensors, for reading and for writing: `quantization/{quant_config,quant_scheme,
//! quant_args}.py` of that package.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::model::json::Unique;

/// The name of the method in `quant_method`.
pub const METHOD: &str = "compressed-tensors";

/// The object under `quantization_config` (before October 2024: `compression_config`). Keys that say nothing about the
/// weights are not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizationConfig {
    /// [`METHOD`].
    #[serde(default = "method")]
    pub quant_method: String,
    /// The form of every group's tensors, unless the group names its own.
    #[serde(default)]
    pub format: Format,
    /// `compressed`, `frozen`, ...: a stage of the writer's pipeline that says nothing reliable about the tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_status: Option<String>,
    /// Modules that are left alone, in the terms of [`QuantizationConfig::scheme_of`].
    #[serde(default, deserialize_with = "or_default")]
    pub ignore: Vec<String>,
    /// How the writer would quantise the KV cache.
    #[serde(default)]
    pub kv_cache_scheme: Option<Arguments>,
    /// What is quantised and how, by the name of the group.
    #[serde(default, deserialize_with = "groups", serialize_with = "as_object")]
    pub config_groups: Vec<(String, Scheme)>,
    /// Older and newer writers' parts that would change what the tensors mean, if they are more than empty.
    #[serde(default, skip_serializing)]
    pub sparsity_config: Option<Value>,
    /// Rotations that the model would have to apply at run time, if more than empty.
    #[serde(default, skip_serializing)]
    pub transform_config: Option<Value>,
}

/// How tensors are stored: which they are, and their packing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Format {
    /// Plain weights.
    #[default]
    Dense,
    /// Integers packed into words: `weight_packed`.
    PackQuantized,
    /// Integers of a byte each: `weight` as I8.
    IntQuantized,
    /// FP8 weights with quantised inputs: `weight` as F8_E4M3.
    FloatQuantized,
    /// A byte per code of either kind, by older writers.
    NaiveQuantized,
    /// Every group names its own.
    MixedPrecision,
    /// Any other, by its name.
    Other(String),
}

impl Format {
    /// The name in the file.
    pub fn name(&self) -> &str {
        match self {
            Self::Dense => "dense",
            Self::PackQuantized => "pack-quantized",
            Self::IntQuantized => "int-quantized",
            Self::FloatQuantized => "float-quantized",
            Self::NaiveQuantized => "naive-quantized",
            Self::MixedPrecision => "mixed-precision",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Format {
    fn from(name: String) -> Self {
        let known = [
            Self::PackQuantized,
            Self::IntQuantized,
            Self::FloatQuantized,
            Self::NaiveQuantized,
            Self::MixedPrecision,
        ];
        match name.as_str() {
            // What a model is before anything is written, and the older name of plain tensors.
            "dense" | "fakequant" => Self::Dense,
            _ => known
                .into_iter()
                .find(|format| format.name() == name)
                .unwrap_or(Self::Other(name)),
        }
    }
}

impl From<Format> for String {
    fn from(format: Format) -> Self {
        format.name().to_owned()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One group: modules and how they are quantised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scheme {
    /// Modules, in the terms of [`QuantizationConfig::scheme_of`].
    #[serde(default)]
    pub targets: Vec<String>,
    /// Their weights; plain where absent.
    #[serde(default)]
    pub weights: Option<Arguments>,
    /// Their inputs; as they are where absent.
    #[serde(default)]
    pub input_activations: Option<Arguments>,
    /// Their outputs; as they are where absent.
    #[serde(default)]
    pub output_activations: Option<Arguments>,
    /// The form of their tensors, where it is not the one of the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
}

/// How one tensor is quantised (`QuantizationArgs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arguments {
    /// Bits of a code.
    #[serde(default = "eight")]
    pub num_bits: u32,
    /// What a code is.
    #[serde(default, rename = "type")]
    pub number: Number,
    /// Whether there are no zero points.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// What shares a scale; where absent, `group_size` says it.
    #[serde(default)]
    pub strategy: Option<Strategy>,
    /// Columns per scale; -1 for a whole row.
    #[serde(default)]
    pub group_size: Option<i64>,
    /// Rows and columns per scale with [`Strategy::Block`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_structure: Option<Block>,
    /// Whether scales are found when the model runs.
    #[serde(default)]
    pub dynamic: Dynamic,
    /// Whether groups were formed in the order of importance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actorder: Option<ActOrder>,
    /// The observer that found the scales; of no consequence for reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observer: Option<String>,
    /// Keys that this program does not know.
    #[serde(flatten, skip_serializing)]
    pub other: BTreeMap<String, Value>,
}

/// What a code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Number {
    /// An integer.
    #[default]
    Int,
    /// A small floating-point number: E4M3 with eight bits.
    Float,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Everything.
    Tensor,
    /// A row.
    Channel,
    /// Some columns of a row.
    Group,
    /// Some columns of some rows.
    Block,
    /// A token of the input.
    Token,
    /// Some columns, under one scale of the whole (FP4).
    TensorGroup,
    /// An attention head.
    AttnHead,
}

/// Rows and columns of a block: `[128, 128]`, or `"128x128"` by older writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Block(pub usize, pub usize);

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Pair([usize; 2]),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Pair([rows, columns]) => Ok(Self(rows, columns)),
            Written::Text(text) => text
                .split_once('x')
                .and_then(|(rows, columns)| Some(Self(rows.parse().ok()?, columns.parse().ok()?)))
                .ok_or_else(|| D::Error::custom(format!("block_structure '{text}'"))),
        }
    }
}

/// Whether, and how, scales are found when the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dynamic {
    /// They are in the file.
    #[default]
    No,
    /// They are found on the fly.
    Yes,
    /// Those of groups are found on the fly, under one that is in the file (FP4).
    Local,
}

impl Serialize for Dynamic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes => serializer.serialize_bool(true),
            Self::Local => serializer.serialize_str("local"),
        }
    }
}

impl<'de> Deserialize<'de> for Dynamic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => Ok(Self::No),
            Value::Bool(true) => Ok(Self::Yes),
            Value::String(text) if text == "local" => Ok(Self::Local),
            other => Err(D::Error::custom(format!(
                "dynamic: {other}: expected true, false or \"local\""
            ))),
        }
    }
}

/// The order in which GPTQ took columns, as far as it shows in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActOrder {
    /// By importance, in groups of neighbours: nothing of it is in the file.
    Weight,
    /// By importance, in groups by importance: `weight_g_idx` says which.
    Group,
}

impl Serialize for ActOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            // The name that every version of the package reads.
            Self::Weight => "weight",
            Self::Group => "group",
        })
    }
}

impl<'de> Deserialize<'de> for ActOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            // A plain "no" is written as null; false is as good.
            Value::Bool(false) => Ok(Self::Weight),
            Value::Bool(true) => Ok(Self::Group),
            Value::String(text) if ["weight", "static"].contains(&text.as_str()) => {
                Ok(Self::Weight)
            }
            Value::String(text) if ["group", "dynamic"].contains(&text.as_str()) => Ok(Self::Group),
            other => Err(D::Error::custom(format!(
                "actorder: {other}: expected weight, static, group, dynamic, true or false"
            ))),
        }
    }
}

impl QuantizationConfig {
    /// One group of these modules, all else left alone: what this program's quantisers write.
    pub fn of_one(format: Format, scheme: Scheme, ignore: Vec<String>) -> Self {
        Self {
            quant_method: method(),
            format,
            quantization_status: Some("compressed".to_owned()),
            ignore,
            kv_cache_scheme: None,
            config_groups: vec![("group_0".to_owned(), scheme)],
            sparsity_config: None,
            transform_config: None,
        }
    }
}

impl Scheme {
    /// All linear layers.
    pub fn of_linear(weights: Arguments, input_activations: Option<Arguments>) -> Self {
        Self {
            targets: vec!["Linear".to_owned()],
            weights: Some(weights),
            input_activations,
            output_activations: None,
            format: None,
        }
    }
}

impl Arguments {
    /// Weights as integers of `bits` with a scale per `group` columns, or per row.
    pub fn integers(bits: u32, symmetric: bool, group: Option<usize>) -> Self {
        Self {
            num_bits: bits,
            number: Number::Int,
            symmetric,
            strategy: Some(if group.is_some() {
                Strategy::Group
            } else {
                Strategy::Channel
            }),
            group_size: group.and_then(|group| i64::try_from(group).ok()),
            block_structure: None,
            dynamic: Dynamic::No,
            actorder: None,
            observer: None,
            other: BTreeMap::new(),
        }
    }

    /// Inputs in eight bits, symmetric, a scale per token found on the fly.
    pub fn per_token(number: Number) -> Self {
        Self {
            number,
            strategy: Some(Strategy::Token),
            dynamic: Dynamic::Yes,
            ..Self::integers(8, true, None)
        }
    }

    /// A key that this program does not know and that says something.
    pub fn unknown(&self) -> Option<(&str, &Value)> {
        let idle = ["observer_kwargs", "scale_dtype", "zp_dtype", "is_mse"];
        let found = self
            .other
            .iter()
            .find(|(key, value)| !value.is_null() && !idle.contains(&key.as_str()));
        found.map(|(key, value)| (key.as_str(), value))
    }

    /// What shares a scale, said or meant.
    pub fn strategy(&self) -> Strategy {
        self.strategy.unwrap_or(match self.group_size {
            None => Strategy::Tensor,
            Some(-1) => Strategy::Channel,
            Some(_) => Strategy::Group,
        })
    }
}

fn method() -> String {
    METHOD.to_owned()
}

const fn eight() -> u32 {
    8
}

const fn yes() -> bool {
    true
}

/// Null as nothing.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A scheme, or the targets of a preset.
#[derive(Deserialize)]
#[serde(untagged)]
enum Group {
    Targets(Vec<String>),
    Scheme(Box<Scheme>),
}

fn groups<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Scheme)>, D::Error> {
    let written: Option<Unique<Group>> = Option::deserialize(deserializer)?;
    let written = written.map_or_else(Vec::new, |groups| groups.0);
    let scheme = |(name, group): (String, Group)| match group {
        Group::Scheme(scheme) => Ok((name, *scheme)),
        Group::Targets(targets) => match preset(&name, targets) {
            Some(scheme) => Ok((name, scheme)),
            None => Err(D::Error::custom(format!(
                "the preset '{name}' is not known"
            ))),
        },
    };
    written.into_iter().map(scheme).collect()
}

fn as_object<S: Serializer>(groups: &[(String, Scheme)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(groups.iter().map(|(name, scheme)| (name, scheme)))
}

/// The schemes that have names (`quant_scheme.py`). The file's own tensors say how many columns share a scale, since
/// `W8A16` has meant both a row and 128.
fn preset(name: &str, targets: Vec<String>) -> Option<Scheme> {
    let float = |strategy| Arguments {
        number: Number::Float,
        strategy: Some(strategy),
        ..Arguments::integers(8, true, None)
    };
    let (weights, inputs) = match name.to_ascii_uppercase().as_str() {
        "W4A16" => (Arguments::integers(4, true, Some(128)), None),
        "W4A16_ASYM" => (Arguments::integers(4, false, Some(128)), None),
        "W8A16" => (Arguments::integers(8, true, None), None),
        "W8A8" | "INT8" => (
            Arguments::integers(8, true, None),
            Some(Arguments::per_token(Number::Int)),
        ),
        "FP8" => (float(Strategy::Tensor), Some(float(Strategy::Tensor))),
        "FP8_DYNAMIC" => (
            float(Strategy::Channel),
            Some(Arguments::per_token(Number::Float)),
        ),
        _ => return None,
    };
    Some(Scheme {
        targets,
        ..Scheme::of_linear(weights, inputs)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_and_has_the_keys_of_the_package() {
        let written = QuantizationConfig::of_one(
            Format::PackQuantized,
            Scheme::of_linear(Arguments::integers(4, true, Some(128)), None),
            vec!["lm_head".to_owned()],
        );
        let value = serde_json::to_value(&written).unwrap();
        assert_eq!(
            value,
            json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "ignore": ["lm_head"], "kv_cache_scheme": null,
                "config_groups": {"group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group",
                                "group_size": 128, "dynamic": false},
                    "input_activations": null, "output_activations": null,
                }},
            })
        );
        assert_eq!(
            serde_json::from_value::<QuantizationConfig>(value).unwrap(),
            written
        );
        let inputs = serde_json::to_value(Arguments::per_token(Number::Int)).unwrap();
        assert_eq!(
            inputs,
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token",
                   "group_size": null, "dynamic": true})
        );
    }

    #[test]
    fn presets_and_every_spelling_are_read() {
        let config: QuantizationConfig = serde_json::from_value(json!({
            "format": "fakequant", "ignore": null,
            "config_groups": {
                "W8A8": ["Linear"],
                "g": {"targets": ["re:.*down"], "format": "naive-quantized", "weights": {
                    "type": "float", "block_structure": "128x64", "actorder": true, "dynamic": "local"}},
            },
        }))
        .unwrap();
        assert_eq!(
            (config.quant_method.as_str(), &config.format),
            (METHOD, &Format::Dense)
        );
        let [(_, int8), (_, float)] = config.config_groups.as_slice() else {
            panic!("{config:?}")
        };
        assert_eq!(
            int8.input_activations,
            Some(Arguments::per_token(Number::Int))
        );
        let weights = float.weights.as_ref().unwrap();
        assert_eq!(float.format, Some(Format::NaiveQuantized));
        assert_eq!((weights.num_bits, weights.symmetric), (8, true));
        assert_eq!(
            (weights.actorder, weights.dynamic),
            (Some(ActOrder::Group), Dynamic::Local)
        );
        assert_eq!(
            (weights.block_structure, weights.strategy()),
            (Some(Block(128, 64)), Strategy::Tensor)
        );
        for bad in [
            json!({"config_groups": {"W3A16": ["Linear"]}}),
            json!({"config_groups": {"g": {"weights": {"actorder": "other"}}}}),
            json!({"config_groups": {"g": {"weights": {"dynamic": 3}}}}),
            json!({"config_groups": 3}),
        ] {
            assert!(
                serde_json::from_value::<QuantizationConfig>(bad.clone()).is_err(),
                "{bad}"
            );
        }
    }
}
