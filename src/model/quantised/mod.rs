//! Checkpoints whose linear layers are quantised: which format it is, what it says about each layer, and each layer as the
//! one canonical packed weight.
//!
//! A format is chosen by `quant_method`; whether a layer is quantised, by the tensors that are there. Every format is one
//! file: [`super::compressed_tensors`], [`super::gptq`], [`super::awq`], [`super::fp8`], [`super::bitsandbytes`].

mod parts;
mod summary;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

pub(super) use self::parts::{Part, Parts, WORDS, unpack};
pub use self::summary::StoredScheme;
pub(super) use self::summary::summary;
use super::config::{ModelConfig, TensorSpec};
use super::json::read_value;
use super::safetensors::Safetensors;
use super::{awq, bitsandbytes, compressed_tensors, fp8, gptq};
use crate::error::{Error, Result};
use crate::scheme::{BLOCK, CodeFormat, InputRounding, PackedForm, PackedWeight};

/// Rows are read in multiples of this many, of which the rows of packed zero points and of blocks are divisors.
const ROWS: usize = 128;

/// Files of settings beside a `config.json` that has none, each with the method that it stands for unless it names one.
pub(super) const SETTINGS: [(&str, &str); 2] = [
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
];

/// How the names of scales of the KV cache end.
const CACHE_SCALES: [&str; 6] = [
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".prob_scale",
    ".k_proj.output_scale",
    ".v_proj.output_scale",
];

/// A quantised linear layer of a checkpoint, before its numbers are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoredLinear {
    /// What its weight will be.
    pub form: PackedForm,
    /// What its input is rounded to, as the checkpoint says.
    pub inputs: Option<InputRounding>,
}

/// A checkpoint format.
pub(super) trait Reader: fmt::Debug + Send + Sync {
    /// The method in the terms of a record.
    fn method(&self) -> String;

    /// What the file says about a layer, from headers and configuration; `None` for one that is plain.
    fn describe(&self, parts: &Parts<'_>) -> Result<Option<StoredLinear>>;

    /// Rows of a layer of this form. The range starts at a multiple of 128 and of the rows of a block of scales.
    fn read(
        &self,
        parts: &Parts<'_>,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight>;
}

/// The quantised layers of a checkpoint.
#[derive(Debug)]
pub(super) struct Quantised {
    reader: Box<dyn Reader>,
    /// By the name of the weight, as in `model.layers.0.mlp.up_proj.weight`.
    linears: HashMap<String, StoredLinear>,
    /// What is in the file and not used.
    unused: Vec<String>,
}

impl Quantised {
    /// What `settings`, the object under `quantization_config`, and the tensors say about every layer of `config`. `path`
    /// is where the settings come from.
    pub(super) fn new(
        path: &Path,
        settings: &Value,
        files: &Safetensors,
        config: &ModelConfig,
    ) -> Result<Self> {
        let reader = reader(path, settings)?;
        let mut linears = HashMap::new();
        for tensor in config.tensors().into_iter().filter(may_be_quantised) {
            let parts = parts(files, &tensor)?;
            if let Some(stored) = reader.describe(&parts)? {
                check_width(&parts, &stored.form)?;
                linears.insert(tensor.name, stored);
            }
        }
        let scales = [
            "self_attn.k_scale",
            "self_attn.k_proj.k_scale",
            "self_attn.k_proj.output_scale",
        ];
        let cached = scales
            .into_iter()
            .find(|name| files.contains(&format!("model.layers.0.{name}")));
        let unused = cached.map(|name| format!("scales of the KV cache ({name}, ...)"));
        Ok(Self {
            reader,
            linears,
            unused: unused.into_iter().collect(),
        })
    }

    /// What is stored under this weight's name, if it is quantised.
    pub(super) fn linear(&self, name: &str) -> Option<&StoredLinear> {
        self.linears.get(name)
    }

    /// Whether a tensor of the file belongs to a quantised layer, or is named by [`Quantised::method`]. A bias is told
    /// apart: what has one is the configuration's to say.
    pub(super) fn owns(&self, name: &str) -> bool {
        let mut modules = name.match_indices('.').map(|(at, _)| &name[..at]);
        let of_layer = modules.any(|module| self.linears.contains_key(&format!("{module}.weight")));
        let of_cache = CACHE_SCALES.iter().any(|scale| name.ends_with(scale));
        of_layer && !name.ends_with(".bias") || of_cache && !self.unused.is_empty()
    }

    /// The method in the terms of a record.
    pub(super) fn method(&self) -> String {
        let mut method = self.reader.method();
        for unused in &self.unused {
            method = format!("{method}, {unused} not used");
        }
        method
    }

    /// The rows of a block that holds `rows` and that can be read by itself.
    pub(super) fn whole_blocks(form: &PackedForm, rows: &Range<usize>) -> Range<usize> {
        if form.scale_rows < form.n && !ROWS.is_multiple_of(form.scale_rows) {
            return 0..form.n;
        }
        rows.start / ROWS * ROWS..rows.end.next_multiple_of(ROWS).min(form.n)
    }

    /// Rows of a weight, as [`Quantised::whole_blocks`] gives them.
    pub(super) fn read(
        &self,
        files: &Safetensors,
        name: &str,
        form: &PackedForm,
        rows: Range<usize>,
    ) -> Result<PackedWeight> {
        let parts = Parts {
            files,
            module: module(name),
            n: form.n,
            k: form.k,
        };
        self.reader.read(&parts, form, rows)
    }
}

/// The settings of a checkpoint folder and the file that they are in: under `quantization_config` of `config.json`, under
/// the older `compression_config` there, or in a file of their own by AutoGPTQ or AutoAWQ.
pub(super) fn settings(
    folder: &Path,
    config: &Path,
) -> Result<Option<(std::path::PathBuf, Value)>> {
    let whole = read_value(config)?;
    for key in ["quantization_config", "compression_config"] {
        if let Some(found) = whole.get(key).filter(|value| !value.is_null()) {
            return Ok(Some((config.to_owned(), found.clone())));
        }
    }
    for (name, method) in SETTINGS {
        let path = folder.join(name);
        if path.is_file() {
            let mut found = read_value(&path)?;
            if let Some(keys) = found.as_object_mut() {
                keys.entry("quant_method").or_insert_with(|| method.into());
            }
            return Ok(Some((path, found)));
        }
    }
    Ok(None)
}

/// The method that settings name, if they do.
pub(super) fn method_of(settings: &Value) -> Option<&str> {
    let named = settings.get("quant_method").and_then(Value::as_str);
    // The older key of compressed-tensors came without a method at times.
    let groups = settings
        .get("config_groups")
        .map(|_| compressed_tensors::METHOD);
    // So did bitsandbytes.
    let loads = |key| settings.get(key).and_then(Value::as_bool) == Some(true);
    let bits = (loads("load_in_4bit") || loads("load_in_8bit")).then_some("bitsandbytes");
    named.or(groups).or(bits)
}

fn reader(path: &Path, settings: &Value) -> Result<Box<dyn Reader>> {
    let Some(method) = method_of(settings) else {
        return Err(Error::data(
            path,
            "the settings of the quantised checkpoint have no key 'quant_method': add the one of the program that made it \
             (compressed-tensors, gptq, awq, fp8 or bitsandbytes)",
        ));
    };
    Ok(match method {
        compressed_tensors::METHOD => Box::new(compressed_tensors::reader(path, settings)?),
        "gptq" => Box::new(gptq::Gptq::new(path, settings)?),
        "awq" => Box::new(awq::Awq::new(path, settings)?),
        "fp8" => Box::new(fp8::Fp8::new(path, settings)?),
        "bitsandbytes" => Box::new(bitsandbytes::BitsAndBytes::new(path, settings)?),
        other => {
            return Err(Error::Config(format!(
                "{}: checkpoints quantised by '{other}' are not supported (supported: compressed-tensors, gptq, awq, fp8, \
                 bitsandbytes, and GGUF files)",
                path.display()
            )));
        }
    })
}

/// Whether a checkpoint may have quantised this tensor.
fn may_be_quantised(tensor: &TensorSpec) -> bool {
    tensor.is_linear() || tensor.name == "lm_head.weight"
}

/// Refuses rows and groups that have no packed form, before anything is read.
fn check_width(parts: &Parts<'_>, form: &PackedForm) -> Result<()> {
    if form.format == CodeFormat::U4 && !form.k.is_multiple_of(BLOCK) {
        return Err(parts.unsupported(format!(
            "K = {} of 4-bit codes is not a multiple of {BLOCK}: quantise this layer to 8 bits, or leave it plain",
            form.k
        )));
    }
    if form.group < form.k && !form.group.is_multiple_of(BLOCK) {
        return Err(parts.unsupported(format!(
            "groups of {} columns that share a scale are not supported (supported: multiples of {BLOCK}, and whole \
             rows): quantise the model with one of these",
            form.group
        )));
    }
    Ok(())
}

fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

fn parts<'a>(files: &'a Safetensors, tensor: &'a TensorSpec) -> Result<Parts<'a>> {
    let [n, k] = tensor.shape.as_slice() else {
        return Err(Error::Internal(format!("'{}' is no matrix", tensor.name)));
    };
    Ok(Parts {
        files,
        module: module(&tensor.name),
        n: *n,
        k: *k,
    })
}

/// A key of settings that must be of one type; null counts as absent.
pub(super) struct Settings<'a> {
    pub(super) path: &'a Path,
    pub(super) keys: &'a Value,
}

impl<'a> Settings<'a> {
    pub(super) fn bad(&self, key: &str, what: impl fmt::Display) -> Error {
        Error::data(
            self.path,
            format!("quantization_config: key '{key}': {what}"),
        )
    }

    pub(super) fn unsupported(&self, what: impl fmt::Display) -> Error {
        Error::Config(format!(
            "{}: quantization_config: {what}",
            self.path.display()
        ))
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, Value::as_i64, "a whole number")
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, Value::as_bool, "true or false")
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, Value::as_str, "a string")
    }

    fn typed<T>(
        &self,
        key: &str,
        of: impl Fn(&'a Value) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match of(value) {
            Some(found) => Ok(Some(found)),
            None => Err(self.bad(key, format!("{value}: expected {expected}"))),
        }
    }
}

/// A group size of a file: positive, or -1 for whole rows.
pub(super) fn group_of(size: i64, k: usize) -> Option<usize> {
    match usize::try_from(size) {
        Ok(group @ 1..) => Some(group.min(k)),
        Err(_) if size == -1 => Some(k),
        _ => None,
    }
}
