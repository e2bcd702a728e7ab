//! From a model's source to the device, a piece at a time: read, widen or quantise, upload. The host never holds more
//! than one piece, or one layer's packed weights where they stay as they are.

use half::{bf16, f16};
use rayon::prelude::*;

use super::limits::table_dtype;
use super::source::{InputPath, Kept, WeightSource};
use super::weights::{DeviceWeights, Layer, Projection};
use crate::error::{Error, Result};
use crate::kernels::attention::Attention;
use crate::kernels::device::HostElem;
use crate::kernels::fill::Filling;
use crate::kernels::linear::{LinearWeight, WeightData};
use crate::kernels::quantize::QuantizeRows;
use crate::kernels::silu_mul::GateUp;
use crate::kernels::{Buf, BufType, Device};
use crate::model::{DummyFill, HostSliceMut, Model};
use crate::scheme::{Activations, CodeFormat, DType, PackedWeight, Variant, WeightScheme};

/// Elements of one piece: 64 MiB as f32.
const PIECE: usize = 16 << 20;

/// Told of every tensor as it is loaded: bytes read so far and in all.
pub(super) type LoadProgress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

impl DeviceWeights {
    /// Loads `model` in `variant` onto `device`, with activations of type `act`.
    ///
    /// # Errors
    /// If the device has no kernel for the heads, a file is unreadable, a group fits no layer, or memory is short. What
    /// `progress` returns stops the loading.
    pub fn load(
        model: &Model,
        variant: &Variant,
        act: DType,
        device: &Device,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        // Loading rounds to nearest; anything else under that name would be a wrong figure.
        if !variant.is_made_on_load() {
            return Err(Error::Config(format!(
                "'{variant}' is made by quantising the model first: write it with `candlepower quantize` and load that as-is"
            )));
        }
        let config = &model.config;
        Attention::check_head_dim(device, config.head_dim)?;
        let total = config.parameters();
        let source = WeightSource::of(model, variant)?;
        let mut loader = Loader {
            model,
            variant,
            act,
            source: &source,
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
}

/// Neighbours of one form.
enum Run {
    /// Numbers of one type, by their places in the list of names.
    Plain(DType, Vec<usize>),
    /// Codes.
    Packed(Vec<PackedWeight>),
}

struct Loader<'a> {
    model: &'a Model,
    variant: &'a Variant,
    act: DType,
    source: &'a WeightSource,
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
        let rows = self.rows(names, bias)?;
        let weight = rows.weight.streamed(self.device, self.act)?;
        Ok(Projection { weight, ..rows })
    }

    /// Gate and up as one matrix, in the order that the device wants.
    fn gate_up(&mut self, names: &[String], bias: bool) -> Result<(Projection, GateUp)> {
        let Projection {
            weight,
            bias,
            input,
        } = self.rows(names, bias)?;
        let (weight, bias, layout) = weight.paired(self.device, bias)?;
        let weight = weight.streamed(self.device, self.act)?;
        let projection = Projection {
            weight,
            bias,
            input,
        };
        Ok((projection, layout))
    }

    /// The named layers as one matrix, one below the other, not yet as the device streams it.
    fn rows(&mut self, names: &[String], bias: bool) -> Result<Projection> {
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let shapes = weights
            .iter()
            .map(|w| self.model.weights.shape(w))
            .collect::<Result<Vec<_>>>()?;
        let k = shapes[0][1];
        let rows: Vec<usize> = shapes.iter().map(|shape| shape[0]).collect();
        let n = rows.iter().sum();
        let precision = self.source.precision;
        let packed =
            |format, group| LinearWeight::packed(self.device, [n, k], format, group, precision);
        let empty = match self.variant.weights {
            WeightScheme::Plain(dtype) => Some(LinearWeight::plain(self.device, [n, k], dtype)?),
            WeightScheme::Int8 => Some(packed(CodeFormat::I8, k)?),
            WeightScheme::Int4 { .. } => {
                let group = self.variant.group_for(&names[0], k)?;
                Some(packed(CodeFormat::U4, group)?)
            }
            WeightScheme::AsIs => None,
        };
        let (weight, input) = match empty {
            Some(mut weight) => {
                let mut first = 0;
                for (name, rows) in weights.iter().zip(&rows) {
                    self.matrix(name, [*rows, k], &mut weight, first)?;
                    first += rows;
                }
                let input = match self.variant.activations {
                    Activations::Int8PerToken => InputPath::Codes,
                    Activations::Float | Activations::AsIs => InputPath::Float,
                };
                (weight, input)
            }
            None => self.kept(&weights, &rows, k)?,
        };
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
        Ok(Projection {
            weight,
            bias,
            input,
        })
    }

    /// The named matrices as the checkpoint has them: those of one form as one, the others apart; and what happens to their
    /// input.
    fn kept(
        &mut self,
        names: &[String],
        rows: &[usize],
        k: usize,
    ) -> Result<(LinearWeight, InputPath)> {
        let mut runs: Vec<Run> = Vec::new();
        let mut input: Option<InputPath> = None;
        for (i, name) in names.iter().enumerate() {
            let kept = self
                .source
                .kept(name)
                .ok_or_else(|| Error::Internal(format!("nothing is known of '{name}'")))?;
            let path = match input {
                None => Some(kept.input()),
                Some(before) => before.and(kept.input()),
            };
            input = path;
            if path.is_none() {
                return Err(Error::Config(format!(
                    "'{name}' and '{}' share an input, but the checkpoint rounds it for each in another way, which is not \
                     supported",
                    names[0]
                )));
            }
            match (kept, runs.last_mut()) {
                (Kept::Plain(dtype), Some(Run::Plain(before, members))) if *before == dtype => {
                    members.push(i);
                }
                (Kept::Plain(dtype), _) => runs.push(Run::Plain(dtype, vec![i])),
                (Kept::Packed(_), last) => {
                    let weight = self.model.weights.read_packed(name)?;
                    self.advance(rows[i] * k)?;
                    match last {
                        Some(Run::Packed(stack)) if stack[0].stacks_with(&weight) => {
                            stack.push(weight);
                        }
                        _ => runs.push(Run::Packed(vec![weight])),
                    }
                }
            }
        }
        let mut parts = Vec::new();
        for run in runs {
            parts.push(match run {
                Run::Plain(dtype, members) => {
                    let n = members.iter().map(|&i| rows[i]).sum();
                    let mut weight = LinearWeight::plain(self.device, [n, k], dtype)?;
                    let mut first = 0;
                    for i in members {
                        self.matrix(&names[i], [rows[i], k], &mut weight, first)?;
                        first += rows[i];
                    }
                    weight
                }
                Run::Packed(stack) => {
                    let whole = PackedWeight::stack(stack).map_err(Error::Internal)?;
                    LinearWeight::from_packed(self.device, whole)?
                }
            });
        }
        let weight = match parts.len() {
            1 => parts.swap_remove(0),
            _ => LinearWeight::apart(parts)?,
        };
        Ok((weight, input.unwrap_or(InputPath::Float)))
    }

    /// An embedding or head, in a plain type unless it stays as it is.
    fn table(&mut self, name: &str, dtype: DType) -> Result<LinearWeight> {
        let shape = self.model.weights.shape(name)?;
        let dtype = match self.source.kept(name) {
            None => dtype,
            Some(Kept::Plain(own)) => own,
            Some(Kept::Packed(_)) => {
                let names = [name.to_owned()];
                return match self.kept(&names, &shape[..1], shape[1])? {
                    (weight, InputPath::Float) => weight.streamed(self.device, self.act),
                    _ => Err(Error::Config(format!(
                        "'{name}': an output head whose input is rounded is not supported"
                    ))),
                };
            }
        };
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
            WeightData::Plain(_) | WeightData::Streamed(_) | WeightData::Apart(_) => None,
            WeightData::Packed(_) => Some(
                self.device
                    .alloc(BufType::Float(self.source.precision), rows_at_once * k)?,
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
                (WeightData::Streamed(_) | WeightData::Apart(_), _) => {
                    unreachable!("rows come before tiles and whole before parts")
                }
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
