//! The baseline: candle-transformers' own models on the same weights, one op at a time, as a user of candle would run
//! them. Batches are of equal lengths only, which is what a speed cell has.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::{D, DType as CandleType, Device as CandleDevice, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    llama, quantized_llama, quantized_qwen2, quantized_qwen3, qwen2, qwen3,
};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::model::{Family, HostSliceMut, Model};
use crate::scheme::DType;

/// A model of candle-transformers with what its step needs.
pub enum CandleModel {
    /// Llama, whose cache is a value of its own.
    Llama {
        /// The model.
        model: Box<llama::Llama>,
        /// Its shape in candle's terms.
        config: llama::Config,
        /// Keys and values.
        cache: Box<llama::Cache>,
        /// The activation type.
        dtype: CandleType,
    },
    /// Qwen2 and Qwen2.5.
    Qwen2(qwen2::ModelForCausalLM),
    /// Qwen3.
    Qwen3(qwen3::ModelForCausalLM),
    /// A GGUF file of the llama architecture, its blocks kept quantised.
    QuantizedLlama(quantized_llama::ModelWeights),
    /// A GGUF file of Qwen2.
    QuantizedQwen2(quantized_qwen2::ModelWeights),
    /// A GGUF file of Qwen3.
    QuantizedQwen3(quantized_qwen3::ModelWeights),
}

/// candle's model, and how far its cache is filled.
pub struct CandleEngine {
    model: CandleModel,
    device: CandleDevice,
    position: usize,
    bytes: u64,
}

impl CandleEngine {
    /// The same weights, rounded to `weights` and computed in `act`.
    ///
    /// # Errors
    /// If candle has no such model, or what it says.
    pub fn load(model: &Model, weights: DType, act: DType, device: &Device) -> Result<Self> {
        let candle = candle_device(device)?;
        let json = model.config.to_json()?;
        let tensors = read_tensors(model, weights, act, &candle)?;
        let bytes = tensors
            .values()
            .map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64)
            .sum();
        let dtype = candle_type(act);
        let vars = VarBuilder::from_tensors(tensors, dtype, &candle);
        let model = match model.config.family {
            Family::Llama => {
                let config = parse::<llama::LlamaConfig>(json)?.into_config(false);
                let cache = llama::Cache::new(true, dtype, &config, &candle).map_err(fault)?;
                let model = llama::Llama::load(vars, &config).map_err(fault)?;
                CandleModel::Llama {
                    model: Box::new(model),
                    config,
                    cache: Box::new(cache),
                    dtype,
                }
            }
            Family::Qwen2 => CandleModel::Qwen2(
                qwen2::ModelForCausalLM::new(&parse(json)?, vars).map_err(fault)?,
            ),
            Family::Qwen3 => CandleModel::Qwen3(
                qwen3::ModelForCausalLM::new(&parse(json)?, vars).map_err(fault)?,
            ),
        };
        Ok(Self {
            model,
            device: candle,
            position: 0,
            bytes,
        })
    }

    /// candle's own quantised model of a GGUF file.
    ///
    /// # Errors
    /// If the file is not readable as such.
    pub fn load_gguf(path: &Path, family: Family, device: &Device) -> Result<Self> {
        let candle = candle_device(device)?;
        let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
        let mut reader = BufReader::new(file);
        let content = gguf_file::Content::read(&mut reader).map_err(|e| Error::data(path, e))?;
        let bytes = content
            .tensor_infos
            .values()
            .map(|t| {
                (t.shape.elem_count() / t.ggml_dtype.block_size() * t.ggml_dtype.type_size()) as u64
            })
            .sum();
        let bad = |e| Error::data(path, e);
        let model = match family {
            Family::Llama => CandleModel::QuantizedLlama(
                quantized_llama::ModelWeights::from_gguf(content, &mut reader, &candle)
                    .map_err(bad)?,
            ),
            Family::Qwen2 => CandleModel::QuantizedQwen2(
                quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, &candle)
                    .map_err(bad)?,
            ),
            Family::Qwen3 => CandleModel::QuantizedQwen3(
                quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, &candle)
                    .map_err(bad)?,
            ),
        };
        Ok(Self {
            model,
            device: candle,
            position: 0,
            bytes,
        })
    }

    /// Bytes of the weights that it holds.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes
    }

    /// Starts new sequences with these prompts, all of one length; gives the most likely next token of each.
    ///
    /// # Errors
    /// If lengths differ, or what candle says.
    pub fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Vec<u32>> {
        self.clear()?;
        self.step(prompts)
    }

    /// Appends one token to each sequence.
    ///
    /// # Errors
    /// What candle says.
    pub fn decode(&mut self, tokens: &[u32]) -> Result<Vec<u32>> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        self.step(&rows)
    }

    fn clear(&mut self) -> Result<()> {
        self.position = 0;
        match &mut self.model {
            CandleModel::Llama {
                config,
                cache,
                dtype,
                ..
            } => {
                **cache = llama::Cache::new(true, *dtype, config, &self.device).map_err(fault)?;
            }
            CandleModel::Qwen2(model) => model.clear_kv_cache(),
            CandleModel::Qwen3(model) => model.clear_kv_cache(),
            CandleModel::QuantizedLlama(model) => model.clear_kv_cache(),
            CandleModel::QuantizedQwen2(model) => model.clear_kv_cache(),
            CandleModel::QuantizedQwen3(model) => model.clear_kv_cache(),
        }
        Ok(())
    }

    fn step(&mut self, rows: &[&[u32]]) -> Result<Vec<u32>> {
        let length = rows.first().map_or(0, |row| row.len());
        if length == 0 || rows.iter().any(|row| row.len() != length) {
            return Err(Error::Config(
                "--engine candle runs prompts of one length only".into(),
            ));
        }
        let next = self
            .forward(&rows.concat(), rows.len(), length)
            .map_err(fault)?;
        self.position += length;
        Ok(next)
    }

    fn forward(
        &mut self,
        ids: &[u32],
        batch: usize,
        length: usize,
    ) -> candle_core::Result<Vec<u32>> {
        let ids = Tensor::from_slice(ids, (batch, length), &self.device)?;
        let position = self.position;
        let logits = match &mut self.model {
            CandleModel::Llama { model, cache, .. } => model.forward(&ids, position, cache)?,
            CandleModel::Qwen2(model) => model.forward(&ids, position)?,
            CandleModel::Qwen3(model) => model.forward(&ids, position)?,
            CandleModel::QuantizedLlama(model) => model.forward(&ids, position)?,
            CandleModel::QuantizedQwen2(model) => model.forward(&ids, position)?,
            CandleModel::QuantizedQwen3(model) => model.forward(&ids, position)?,
        };
        logits.reshape((batch, ()))?.argmax(D::Minus1)?.to_vec1()
    }
}

fn candle_device(device: &Device) -> Result<CandleDevice> {
    match device {
        Device::Cpu => Ok(CandleDevice::Cpu),
        Device::Gpu(gpu) => gpu.candle_device(),
    }
}

const fn candle_type(dtype: DType) -> CandleType {
    match dtype {
        DType::F32 => CandleType::F32,
        DType::F16 => CandleType::F16,
        DType::BF16 => CandleType::BF16,
    }
}

/// Every tensor of the model under its transformers name.
fn read_tensors(
    model: &Model,
    weights: DType,
    act: DType,
    device: &CandleDevice,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for spec in model.config.tensors() {
        let rows = if spec.shape.len() == 1 {
            1
        } else {
            spec.shape[0]
        };
        let elements: usize = spec.shape.iter().product();
        // Norms and biases are never rounded to a narrower type than the activations'.
        let stored = if spec.shape.len() == 1 { act } else { weights };
        let tensor = match stored {
            DType::F32 => {
                let mut host = vec![0.0_f32; elements];
                model
                    .weights
                    .read_rows(&spec.name, 0..rows, HostSliceMut::F32(&mut host))?;
                Tensor::from_vec(host, spec.shape.as_slice(), device)
            }
            DType::F16 => {
                let mut host = vec![f16::ZERO; elements];
                model
                    .weights
                    .read_rows(&spec.name, 0..rows, HostSliceMut::F16(&mut host))?;
                Tensor::from_vec(host, spec.shape.as_slice(), device)
            }
            DType::BF16 => {
                let mut host = vec![bf16::ZERO; elements];
                model
                    .weights
                    .read_rows(&spec.name, 0..rows, HostSliceMut::BF16(&mut host))?;
                Tensor::from_vec(host, spec.shape.as_slice(), device)
            }
        };
        let tensor = tensor
            .and_then(|t| t.to_dtype(candle_type(act)))
            .map_err(fault)?;
        tensors.insert(spec.name, tensor);
    }
    Ok(tensors)
}

fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> Result<T> {
    serde_json::from_value(json).map_err(|e| {
        Error::Config(format!(
            "candle-transformers refuses the configuration: {e}"
        ))
    })
}

/// candle appends a backtrace; its first line says what was wrong.
fn fault(error: candle_core::Error) -> Error {
    let text = error.to_string();
    let text = format!("candle: {}", text.lines().next().unwrap_or_default());
    // The driver's name of the error is all that candle passes on.
    if text.contains("OUT_OF_MEMORY") {
        Error::OutOfMemory(text)
    } else {
        Error::Device(text)
    }
}
