//! From a model's source to the device, a piece at a time: read, widen or quantise, upload. The host never holds more
//! than one piece.

use half::{bf16, f16};
use rayon::prelude::*;

use super::limits::table_dtype;
use super::weights::{DeviceWeights, Layer, Projection};
use crate::error::Result;
use crate::kernels::attention::Attention;
use crate::kernels::device::HostElem;
use crate::kernels::fill::Filling;
use crate::kernels::linear::{LinearWeight, WeightData};
use crate::kernels::quantize::QuantizeRows;
use crate::kernels::silu_mul::GateUp;
use crate::kernels::{Buf, BufType, Device};
use crate::model::{DummyFill, HostSliceMut, Model};
use crate::scheme::{CodeFormat, DType, Variant, WeightScheme};

/// Elements of one piece: 64 MiB as f32.
const PIECE: usize = 16 << 20;

/// Told of every tensor as it is loaded: bytes read so far and in all.
pub(super) type LoadProgress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

impl DeviceWeights {
    /// Loads `model` in `variant` onto `device`, with activations of type `act`.
    ///
    /// # Errors
    /// If the device has no kernel for the heads, a file is unreadable, a group fits no layer, or memory is short. What `progress` returns stops the loading.
    pub fn load(
        model: &Model,
        variant: &Variant,
        act: DType,
        device: &Device,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        let config = &model.config;
        Attention::check_head_dim(device, config.head_dim)?;
        let total = config.parameters();
        let source = Self::source_precision(model)?;
        let mut loader = Loader {
            model,
            variant,
            act,
            source,
            device,
            progress,
            done: 0,
            total,
        };
        let tables = table_dtype(config, variant);
        let embedding = loader.table("model.embed_tokens.weight", tables)?;
        let layers = (0..config.layers)
            .map(|i| loader.layer(i))
            .collect::<Result<_>>()?;
        let norm = loader.vector(&["model.norm.weight".into()])?;
        let head = if config.tied {
            None
        } else {
            Some(loader.table("lm_head.weight", tables)?)
        };
        device.synchronize()?;
        let (config, variant) = (config.clone(), variant.clone());
        Ok(Self {
            config,
            variant,
            act,
            source,
            embedding,
            head,
            norm,
            layers,
        })
    }

    /// The precision that linear weights are quantised from: the file's own; f32 where its tensors differ.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn source_precision(model: &Model) -> Result<DType> {
        let mut found = None;
        for tensor in model.config.tensors().iter().filter(|t| t.is_linear()) {
            let precision = model.weights.precision(&tensor.name)?;
            match found {
                None => found = Some(precision),
                Some(other) if other != precision => return Ok(DType::F32),
                Some(_) => {}
            }
        }
        Ok(found.unwrap_or(DType::F32))
    }
}

struct Loader<'a> {
    model: &'a Model,
    variant: &'a Variant,
    act: DType,
    source: DType,
    device: &'a Device,
    progress: LoadProgress<'a>,
    done: u64,
    total: u64,
}

impl Loader<'_> {
    fn layer(&mut self, index: usize) -> Result<Layer> {
        let config = &self.model.config;
        let (qkv_bias, o_bias, mlp_bias) = (config.qkv_bias, config.o_bias, config.mlp_bias);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let attention = |part: &str| name(&format!("self_attn.{part}"));
        let mlp = |part: &str| name(&format!("mlp.{part}"));
        let (gate_up, gate_up_layout) =
            self.gate_up(&["gate_proj", "up_proj"].map(mlp), mlp_bias)?;
        Ok(Layer {
            attention_norm: self.vector(&[name("input_layernorm.weight")])?,
            qkv: self.projection(&["q_proj", "k_proj", "v_proj"].map(attention), qkv_bias)?,
            head_norms: if config.qk_norm {
                Some((
                    self.vector(&[attention("q_norm.weight")])?,
                    self.vector(&[attention("k_norm.weight")])?,
                ))
            } else {
                None
            },
            output: self.projection(&[attention("o_proj")], o_bias)?,
            mlp_norm: self.vector(&[name("post_attention_layernorm.weight")])?,
            gate_up,
            gate_up_layout,
            down: self.projection(&[mlp("down_proj")], mlp_bias)?,
        })
    }

    /// The named layers as one matrix, one below the other.
    fn projection(&mut self, names: &[String], bias: bool) -> Result<Projection> {
        let Projection { weight, bias } = self.rows(names, bias)?;
        let weight = weight.streamed(self.device, self.act)?;
        Ok(Projection { weight, bias })
    }

    /// Gate and up as one matrix, in the order that the device wants.
    fn gate_up(&mut self, names: &[String], bias: bool) -> Result<(Projection, GateUp)> {
        let Projection { weight, bias } = self.rows(names, bias)?;
        let (weight, bias, layout) = weight.paired(self.device, bias)?;
        let weight = weight.streamed(self.device, self.act)?;
        Ok((Projection { weight, bias }, layout))
    }

    /// The named layers as one matrix, one below the other, not yet as the device streams it.
    fn rows(&mut self, names: &[String], bias: bool) -> Result<Projection> {
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let shapes = weights
            .iter()
            .map(|w| self.model.weights.shape(w))
            .collect::<Result<Vec<_>>>()?;
        let k = shapes[0][1];
        let n = shapes.iter().map(|shape| shape[0]).sum();
        let mut weight = match self.variant.weights {
            WeightScheme::Plain(dtype) => LinearWeight::plain(self.device, [n, k], dtype)?,
            WeightScheme::Int8 => {
                LinearWeight::packed(self.device, [n, k], CodeFormat::I8, k, self.source)?
            }
            WeightScheme::Int4 { .. } => {
                let group = self.variant.group_for(&names[0], k)?;
                LinearWeight::packed(self.device, [n, k], CodeFormat::U4, group, self.source)?
            }
        };
        let mut first = 0;
        for (name, shape) in weights.iter().zip(&shapes) {
            self.matrix(name, [shape[0], k], &mut weight, first)?;
            first += shape[0];
        }
        let bias = if bias {
            Some(
                self.vector(
                    &names
                        .iter()
                        .map(|name| format!("{name}.bias"))
                        .collect::<Vec<_>>(),
                )?,
            )
        } else {
            None
        };
        Ok(Projection { weight, bias })
    }

    /// An embedding or head in a plain type.
    fn table(&mut self, name: &str, dtype: DType) -> Result<LinearWeight> {
        let shape = self.model.weights.shape(name)?;
        let mut weight = LinearWeight::plain(self.device, [shape[0], shape[1]], dtype)?;
        self.matrix(name, [shape[0], shape[1]], &mut weight, 0)?;
        Ok(weight)
    }

    /// Norms or biases, one after another, in the activation type.
    fn vector(&mut self, names: &[String]) -> Result<Buf> {
        let lengths = names
            .iter()
            .map(|name| self.model.weights.shape(name))
            .collect::<Result<Vec<_>>>()?;
        let total = lengths.iter().map(|shape| shape[0]).sum();
        let mut out = self.device.alloc(BufType::Float(self.act), total)?;
        let mut first = 0;
        for (name, shape) in names.iter().zip(lengths) {
            self.piece(name, [1, shape[0]], 0, 1, &mut out, first)?;
            first += shape[0];
            self.advance(shape[0])?;
        }
        Ok(out)
    }

    /// Puts `name [n, k]` into rows `first ..` of `weight`.
    fn matrix(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        weight: &mut LinearWeight,
        first: usize,
    ) -> Result<()> {
        let rows_at_once = (PIECE / k.max(1)).clamp(1, n.max(1));
        let mut staging = match &weight.data {
            WeightData::Plain(_) | WeightData::Streamed(_) => None,
            WeightData::Packed(_) => Some(
                self.device
                    .alloc(BufType::Float(self.source), rows_at_once * k)?,
            ),
        };
        for start in (0..n).step_by(rows_at_once) {
            let rows = rows_at_once.min(n - start);
            match (&mut weight.data, &mut staging) {
                (WeightData::Plain(out), _) => {
                    self.piece(name, [n, k], start, rows, out, (first + start) * k)?
                }
                (WeightData::Packed(packed), Some(staging)) => {
                    let op = QuantizeRows {
                        rows,
                        k,
                        format: packed.format,
                        group: packed.group,
                    };
                    self.piece(name, [n, k], start, rows, staging, 0)?;
                    op.run(self.device, staging, weight, first + start)?;
                }
                (WeightData::Packed(_), None) => unreachable!("packed weights are staged"),
                (WeightData::Streamed(_), _) => unreachable!("rows come before tiles"),
            }
            self.advance(rows * k)?;
        }
        Ok(())
    }

    /// Brings rows `start .. start + rows` of `name` into `out` from element `at` on, rounding to its type.
    fn piece(
        &self,
        name: &str,
        shape: [usize; 2],
        start: usize,
        rows: usize,
        out: &mut Buf,
        at: usize,
    ) -> Result<()> {
        let k = shape[1];
        if let Some(dummy) = self.model.weights.dummy() {
            let real_shape = self.model.weights.shape(name)?;
            let filling = match dummy.scale(name, &real_shape) {
                DummyFill::Constant(x) => Filling::Constant(x),
                DummyFill::Uniform { amplitude } => Filling::Uniform {
                    stream: dummy.stream(name),
                    amplitude,
                },
            };
            let piece = filling.skip((start * k) as u64);
            return piece.run(self.device, out, at, rows * k);
        }
        match out.dtype()? {
            DType::F32 => self.read::<f32>(name, k, start, rows, out, at, |s| HostSliceMut::F32(s)),
            DType::F16 => self.read::<f16>(name, k, start, rows, out, at, |s| HostSliceMut::F16(s)),
            DType::BF16 => {
                self.read::<bf16>(name, k, start, rows, out, at, |s| HostSliceMut::BF16(s))
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one place in a tensor, one in a buffer, and how to name the type
    fn read<T: HostElem>(
        &self,
        name: &str,
        k: usize,
        start: usize,
        rows: usize,
        out: &mut Buf,
        at: usize,
        slice: for<'s> fn(&'s mut [T]) -> HostSliceMut<'s>,
    ) -> Result<()> {
        let share = rows.div_ceil(rayon::current_num_threads()).max(1);
        let fill = |host: &mut [T]| {
            host.par_chunks_mut(share * k)
                .enumerate()
                .try_for_each(|(i, part)| {
                    let first = start + i * share;
                    self.model
                        .weights
                        .read_rows(name, first..first + part.len() / k, slice(part))
                })
        };
        // On the CPU a buffer is filled where it stands.
        if matches!(self.device, Device::Cpu) {
            return fill(&mut out.host_mut::<T>()?[at..at + rows * k]);
        }
        let mut host = vec![T::default(); rows * k];
        fill(&mut host)?;
        self.device.upload(out, at, &host)
    }

    fn advance(&mut self, elements: usize) -> Result<()> {
        self.done += elements as u64;
        (self.progress)(self.done, self.total)
    }
}
