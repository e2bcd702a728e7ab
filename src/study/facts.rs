//! Facts about model, variant and machine in the terms of records.

use super::plan::EngineKind;
use super::quantise::describe_method;
use super::sensors;
use crate::engine::WeightSource;
use crate::error::{Error, Result};
use crate::kernels::{self, Device};
use crate::measure::{self, GpuSelector, PowerSource};
use crate::model::{HostSliceMut, Model};
use crate::quant::{Samples, plain_dtype};
use crate::results::environment::{Cpu, Device as DeviceFacts, Environment};
use crate::results::record::{self, Scheme};
use crate::scheme::{Activations, DType, Variant, WeightScheme};

/// How NVML names the GPU that `device` is; `None` where there is no board.
pub(super) fn selector(device: &Device) -> Option<GpuSelector> {
    let uuid = gpu_facts_of(device)?.uuid?;
    Some(GpuSelector::from_cuda_uuid(uuid))
}

/// The sensors of the board that `device` is on.
pub(super) fn power_source(device: &Device) -> PowerSource {
    match selector(device) {
        Some(selector) => PowerSource::of_gpu(&selector),
        None => PowerSource::none("energy is measured on NVIDIA GPUs only; this run used the CPU"),
    }
}

/// What `device` is, if it is a GPU.
fn gpu_facts_of(device: &Device) -> Option<&kernels::gpu::Facts> {
    match device {
        Device::Cpu => None,
        Device::Gpu(gpu) => Some(gpu.facts()),
    }
}

/// Program, machine and moment, for a study on `device`.
pub fn environment(device: &Device) -> Environment {
    let facts = measure::Environment::gather(selector(device).as_ref());
    let gpu = facts.gpu.as_ref().ok();
    let mut extra: std::collections::BTreeMap<String, String> = facts
        .variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    extra.insert(
        "simd".into(),
        crate::kernels::SimdLevel::detect().name().into(),
    );
    if let Device::Gpu(gpu) = device
        && let Ok(pool) = gpu.pool()
    {
        extra.insert(
            "memory pool keeps (bytes)".into(),
            pool.release_threshold.to_string(),
        );
    }
    let system = &facts.system;
    let os = [
        system.name.as_deref(),
        system.kernel.as_deref(),
        Some(system.architecture),
    ];
    Environment {
        tool_version: facts.tool.version.to_owned(),
        git_commit: facts.tool.commit.map(str::to_owned),
        features: facts.tool.features.iter().map(|&f| f.to_owned()).collect(),
        device: DeviceFacts {
            name: Some(device_name(device, &facts)),
            kind: Some(device.kind().to_owned()),
            memory_bytes: match device.memory() {
                Some((_, total)) => Some(total),
                None => facts.memory.map(|m| m.0),
            },
            cache_bytes: match device {
                Device::Cpu => facts.cpu.cache.map(|bytes| bytes.0),
                Device::Gpu(gpu) => Some(gpu.facts().cache_bytes as u64),
            },
            driver: gpu.and_then(|g| g.driver.clone()),
            cuda: gpu.and_then(|g| g.cuda_driver.clone()),
            compute_capability: compute_capability(device),
            multiprocessors: gpu_facts_of(device).map(|gpu| gpu.multiprocessors),
            power_limit_watts: gpu.and_then(|g| g.power_limit).map(|w| w.0),
            max_sm_clock_mhz: gpu.and_then(|g| g.max_sm_clock_mhz),
            max_memory_clock_mhz: gpu.and_then(|g| g.max_memory_clock_mhz),
            application_sm_clock_mhz: gpu.and_then(|g| g.application_sm_clock_mhz),
        },
        cpu: Cpu {
            model: facts.cpu.model.clone(),
            cores: facts.cpu.usable_threads,
            memory_bytes: facts.memory.map(|m| m.0),
        },
        os: Some(os.into_iter().flatten().collect::<Vec<_>>().join(", ")),
        started: Some(facts.started.clone()),
        threads: Some(facts.cpu.pool_threads),
        ceilings: None,
        extra,
    }
}

/// What NVML knows of the GPU, as names and readable values; or why it knows nothing.
///
/// # Errors
/// The reason, where there is no GPU or no driver.
pub fn gpu_facts(device: &Device) -> std::result::Result<Vec<(String, String)>, String> {
    let Some(selector) = selector(device) else {
        return Err(match device {
            Device::Cpu => "the device is the CPU".into(),
            Device::Gpu(gpu) => format!("the device is a {}", gpu.facts().name),
        });
    };
    let (facts, now) = measure::gpu_now(&selector).map_err(|why| why.reason)?;
    Ok(sensors::rows(&facts, &now))
}

fn device_name(device: &Device, facts: &measure::Environment) -> String {
    match device {
        Device::Cpu => facts.cpu.model.clone().unwrap_or_else(|| "CPU".into()),
        Device::Gpu(gpu) => gpu.facts().name.clone(),
    }
}

fn compute_capability(device: &Device) -> Option<String> {
    let (major, minor) = gpu_facts_of(device)?.compute_capability;
    Some(format!("{major}.{minor}"))
}

/// The model by content: its configuration, and the first and last row of every tensor. Enough to tell checkpoints
/// apart without reading all of a large one.
pub(super) fn model(model: &Model) -> Result<record::Model> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{:?}", model.config).as_bytes());
    for tensor in model.config.tensors() {
        hasher.update(tensor.name.as_bytes());
        let rows = if tensor.shape.len() == 1 {
            1
        } else {
            tensor.shape[0]
        };
        let mut row = vec![0.0_f32; *tensor.shape.last().unwrap_or(&0)];
        for i in [0, rows - 1] {
            model
                .weights
                .read_rows(&tensor.name, i..i + 1, HostSliceMut::F32(&mut row))?;
            hasher.update(bytemuck::cast_slice(&row));
        }
    }
    let tokenizer = model
        .tokenizer
        .as_ref()
        .map_or_else(|| "none".to_owned(), |t| t.digest());
    Ok(record::Model {
        name: model.name.clone(),
        revision: model.origin.revision.clone(),
        digest: format!("blake3-rows:{}", hasher.finalize().to_hex()),
        tokenizer_digest: tokenizer,
        parameters: Some(model.config.parameters()),
    })
}

/// Name and scheme of a GGUF file's own blocks, by those of its feed-forward layers; `variant` must be plain, for
/// nothing is quantised here.
pub(super) fn file_scheme(model: &Model, variant: &Variant) -> Result<(String, Scheme)> {
    if !matches!(variant.weights, WeightScheme::Plain(_)) {
        return Err(Error::Usage(format!(
            "--engine candle-gguf runs the blocks of the file as they are, not '{variant}': leave --variants out"
        )));
    }
    let blocks = model
        .weights
        .stored("model.layers.0.mlp.gate_proj.weight")?;
    let digits: String = blocks
        .chars()
        .filter(char::is_ascii_digit)
        .take(1)
        .collect();
    let bits = match blocks.as_str() {
        "F32" => 32,
        "F16" | "BF16" => 16,
        _ => digits.parse().unwrap_or_default(),
    };
    let scheme = Scheme {
        bits,
        group_size: (bits < 16).then_some(32),
        symmetric: (bits < 16).then(|| blocks.ends_with("_0")),
        // candle rounds inputs to eight bits in blocks of its own.
        activations: if bits < 16 {
            "int8-per-block".to_owned()
        } else {
            "float".to_owned()
        },
        method: format!("gguf {blocks}"),
        scale_dtype: (bits < 16).then(|| "f16".to_owned()),
    };
    Ok((blocks.to_lowercase(), scheme))
}

/// A variant of a model as its records name it, on this program's own engine with a plain cache; `samples` is what
/// calibrated methods read.
pub(super) fn subject(
    of: &Model,
    variant: &Variant,
    samples: Option<&Samples>,
    act: DType,
    device: &Device,
) -> Result<record::Subject> {
    let facts = measure::Environment::gather(selector(device).as_ref());
    Ok(record::Subject {
        model: model(of)?,
        variant: variant.name.clone(),
        scheme: scheme(of, variant, samples)?,
        activation_dtype: act.name().to_owned(),
        kv_cache: None,
        engine: EngineKind::Candlepower.name().to_owned(),
        device: device_name(device, &facts),
        tool_version: facts.tool.version.to_owned(),
    })
}

/// The scheme of a variant of `model`; `samples` is what calibrated methods read.
pub(super) fn scheme(
    model: &Model,
    variant: &Variant,
    samples: Option<&Samples>,
) -> Result<Scheme> {
    // Scales have the precision that weights are quantised from, or that a quantiser writes.
    let source = match variant.is_made_on_load() {
        true => WeightSource::of(model, variant)?.precision,
        false => plain_dtype(model),
    };
    let stored = model.weights.stored_scheme(&model.config)?;
    let Some(scheme) = variant.scheme() else {
        return Ok(Scheme {
            bits: stored.bits,
            group_size: stored.group,
            symmetric: stored.symmetric,
            activations: stored.activations,
            method: stored.method,
            scale_dtype: stored.scales.map(|dtype| dtype.name().to_owned()),
        });
    };
    let method = describe_method(variant, samples);
    let packed = !matches!(variant.weights, WeightScheme::Plain(_));
    Ok(Scheme {
        bits: scheme.bits,
        group_size: scheme.group_size,
        symmetric: scheme.symmetric,
        activations: match scheme.activations {
            Activations::Float | Activations::AsIs => "float".to_owned(),
            Activations::Int8PerToken => "int8-per-token".to_owned(),
        },
        // What was quantised once is no longer what the model's makers gave away.
        method: match (&model.config.quantization, packed) {
            (None, _) => method,
            (Some(_), true) => format!("{method} of dequantised {}", stored.source),
            (Some(_), false) => format!("dequantised {}", stored.source),
        },
        scale_dtype: packed.then(|| source.name().to_owned()),
    })
}
