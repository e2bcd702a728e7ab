//! The forward pass of one decoder layer at a time over all calibration tokens, by the engine's ops on the engine's device.
//! One layer's weights are there at a time; the residual stream of all tokens waits on the host.

use half::{bf16, f16};

use super::calibration::{Samples, Statistics};
use super::layer::{HostLayer, Matrix, Site, read};
use crate::error::Result;
use crate::kernels::attention::{Attention, LayerCache, Places, Queries};
use crate::kernels::device::HostElem;
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::norm::RmsNorm;
use crate::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use crate::kernels::silu_mul::{GateUp, SiluMul};
use crate::kernels::{Buf, BufType, Device};
use crate::model::{HostSliceMut, Model, ModelConfig};
use crate::scheme::{DType, Elem, KvFormat};

/// Tokens that go through a layer together, unless one run is longer.
const TOKENS_AT_ONCE: usize = 2048;

/// Inputs of a site, and what the ops before it make them of.
type Seen<'a> = &'a mut dyn FnMut(Site, &[f32]);

/// A layer on the device, its weights plain.
pub(super) struct DeviceLayer {
    attention_norm: Buf,
    head_norms: Option<(Buf, Buf)>,
    mlp_norm: Buf,
    /// By [`Site`].
    products: [(LinearWeight, Option<Buf>); 4],
}

impl DeviceLayer {
    /// Brings `layer` to `device`, rounding it to `act`.
    pub(super) fn new(device: &Device, act: DType, layer: &HostLayer) -> Result<Self> {
        let vector = |values: &[f32]| upload(device, act, values);
        let product = |site: Site| product(device, act, layer.at(site));
        Ok(Self {
            attention_norm: vector(&layer.attention_norm)?,
            head_norms: match &layer.head_norms {
                Some([q, k]) => Some((vector(q)?, vector(k)?)),
                None => None,
            },
            mlp_norm: vector(&layer.mlp_norm)?,
            products: [
                product(Site::Qkv)?,
                product(Site::Output)?,
                product(Site::GateUp)?,
                product(Site::Down)?,
            ],
        })
    }
}

/// Matrices that share an input as one, and their biases.
fn product(device: &Device, act: DType, parts: &[Matrix]) -> Result<(LinearWeight, Option<Buf>)> {
    let k = parts[0].k;
    let n = parts.iter().map(|part| part.n).sum();
    let mut weight = LinearWeight::plain(device, [n, k], act)?;
    if let WeightData::Plain(buf) = &mut weight.data {
        let mut first = 0;
        for part in parts {
            put(device, buf, first * k, &part.weights)?;
            first += part.n;
        }
    }
    let bias: Vec<f32> = parts
        .iter()
        .flat_map(|part| part.bias.iter().flatten().copied())
        .collect();
    let bias = match bias.is_empty() {
        true => None,
        false => Some(upload(device, act, &bias)?),
    };
    Ok((weight.streamed(device, act)?, bias))
}

/// Where the model stands with the calibration text: all tokens before some layer.
pub(super) struct Decoder<'a> {
    device: &'a Device,
    config: &'a ModelConfig,
    length: usize,
    /// The residual stream of each chunk, `[tokens, hidden]`.
    stream: Vec<Vec<f32>>,
    rope: RopeTable,
    scratch: Scratch,
}

struct Scratch {
    hidden: Buf,
    normed: Buf,
    qkv: Buf,
    attended: Buf,
    gate_up: Buf,
    gated: Buf,
    slots: Buf,
    positions: Buf,
    cache: LayerCache,
}

impl<'a> Decoder<'a> {
    /// Reads the embeddings of all samples.
    ///
    /// # Errors
    /// If the embedding cannot be read or memory is short.
    pub(super) fn new(
        model: &'a Model,
        samples: &Samples,
        device: &'a Device,
        act: DType,
    ) -> Result<Self> {
        let config = &model.config;
        let length = samples.length;
        let together = (TOKENS_AT_ONCE / length).clamp(1, samples.rows.len().max(1));
        let stream = samples
            .rows
            .chunks(together)
            .map(|rows| embed(model, &rows.concat()))
            .collect::<Result<_>>()?;
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        Ok(Self {
            device,
            config,
            length,
            stream,
            rope: RopeTable::new(device, &frequencies, length)?,
            scratch: Scratch::new(device, config, act, together, length)?,
        })
    }

    /// The residual stream of each chunk, `[tokens, hidden]`.
    pub(super) fn stream(&self) -> &[Vec<f32>] {
        &self.stream
    }

    /// Puts the stream somewhere else; chunks must be as they were.
    pub(super) fn set_stream(&mut self, stream: Vec<Vec<f32>>) {
        self.stream = stream;
    }

    /// Chunks that every pass takes.
    pub(super) fn chunks(&self) -> usize {
        self.stream.len()
    }

    /// Shows the inputs of every site of `layer`, by [`Site`]; the stream stays before the layer.
    pub(super) fn observe(
        &mut self,
        layer: &DeviceLayer,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<[Statistics; 4]> {
        let config = self.config;
        let mut statistics = [
            Statistics::new(config.hidden),
            Statistics::new(config.q_rows()),
            Statistics::new(config.hidden),
            Statistics::new(config.intermediate),
        ];
        for chunk in 0..self.stream.len() {
            self.run(
                layer,
                chunk,
                Some(&mut |site, x| statistics[site.index()].add(x)),
            )?;
            step()?;
        }
        statistics.iter_mut().for_each(Statistics::finish);
        Ok(statistics)
    }

    /// Takes the stream through `layer`.
    pub(super) fn advance(
        &mut self,
        layer: &DeviceLayer,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        for chunk in 0..self.stream.len() {
            self.run(layer, chunk, None)?;
            let count = self.stream[chunk].len();
            self.stream[chunk] = fetch(self.device, &self.scratch.hidden, count)?;
            step()?;
        }
        Ok(())
    }

    /// The stream of one chunk through `layer`, up to the last site's input if `seen` looks on.
    fn run(&mut self, layer: &DeviceLayer, chunk: usize, mut seen: Option<Seen<'_>>) -> Result<()> {
        let Self {
            device,
            config,
            scratch,
            ..
        } = self;
        let (device, config) = (*device, *config);
        let tokens = self.stream[chunk].len() / config.hidden;
        put(device, &mut scratch.hidden, 0, &self.stream[chunk])?;
        let norm = RmsNorm {
            rows: tokens,
            width: config.hidden,
            eps: config.norm_eps,
        };
        let mut show = |site: Site, buf: &Buf, width: usize| match &mut seen {
            None => Ok(true),
            Some(seen) => {
                with_host(device, buf, tokens * width, |x| seen(site, x))?;
                Ok(site != Site::Down)
            }
        };
        let attention = Attention {
            tokens,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity: self.length,
            kv: KvFormat::Auto,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            queries: Queries::Runs,
        };
        let head_norms = layer.head_norms.as_ref().map(|(q, k)| HeadNorms {
            q,
            k,
            eps: config.norm_eps,
        });
        let multiply = |site: Site, x: &Buf, accumulate: bool, out: &mut Buf| {
            let (weight, bias) = &layer.products[site.index()];
            let op = Linear { tokens, accumulate };
            op.run(device, Input::Float(x), weight, bias.as_ref(), out)
        };
        let Scratch {
            hidden,
            normed,
            qkv,
            attended,
            gate_up,
            gated,
            slots,
            positions,
            cache,
        } = scratch;
        let places = Places { slots, positions };

        norm.run(device, hidden, &layer.attention_norm, normed)?;
        show(Site::Qkv, normed, config.hidden)?;
        multiply(Site::Qkv, normed, false, qkv)?;
        RopeAppend(attention).run(device, qkv, head_norms, &self.rope, places, cache)?;
        attention.run(device, qkv, places, cache, attended)?;
        show(Site::Output, attended, config.q_rows())?;
        multiply(Site::Output, attended, true, hidden)?;

        norm.run(device, hidden, &layer.mlp_norm, normed)?;
        show(Site::GateUp, normed, config.hidden)?;
        multiply(Site::GateUp, normed, false, gate_up)?;
        let silu = SiluMul {
            rows: tokens,
            width: config.intermediate,
            layout: GateUp::Halves,
        };
        silu.run(device, gate_up, gated)?;
        if show(Site::Down, gated, config.intermediate)? {
            multiply(Site::Down, gated, true, hidden)?;
        }
        Ok(())
    }
}

/// The last norm and the output head on the device.
pub(super) struct Head<'a> {
    device: &'a Device,
    act: DType,
    eps: f32,
    norm: Buf,
    table: LinearWeight,
}

impl<'a> Head<'a> {
    /// Reads both; the head is the embedding where the model has no other.
    pub(super) fn new(model: &Model, device: &'a Device, act: DType) -> Result<Self> {
        let config = &model.config;
        let name = match config.tied {
            true => "model.embed_tokens.weight",
            false => "lm_head.weight",
        };
        let mut table = LinearWeight::plain(device, [config.vocab, config.hidden], act)?;
        if let WeightData::Plain(buf) = &mut table.data {
            put(device, buf, 0, &read(model, name)?)?;
        }
        Ok(Self {
            device,
            act,
            eps: config.norm_eps,
            norm: upload(device, act, &read(model, "model.norm.weight")?)?,
            table,
        })
    }

    /// Logits of hidden states `[tokens, hidden]`, `[tokens, vocab]`.
    pub(super) fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let (vocab, width) = (self.table.n, self.table.k);
        let tokens = hidden.len() / width;
        let x = upload(self.device, self.act, hidden)?;
        let mut normed = self
            .device
            .alloc(BufType::Float(self.act), tokens * width)?;
        let norm = RmsNorm {
            rows: tokens,
            width,
            eps: self.eps,
        };
        norm.run(self.device, &x, &self.norm, &mut normed)?;
        let mut logits = self
            .device
            .alloc(BufType::Float(DType::F32), tokens * vocab)?;
        let product = Linear {
            tokens,
            accumulate: false,
        };
        product.run(
            self.device,
            Input::Float(&normed),
            &self.table,
            None,
            &mut logits,
        )?;
        fetch(self.device, &logits, tokens * vocab)
    }
}

impl Scratch {
    fn new(
        device: &Device,
        config: &ModelConfig,
        act: DType,
        slots: usize,
        length: usize,
    ) -> Result<Self> {
        let tokens = slots * length;
        let numbers = |width: usize| device.alloc(BufType::Float(act), tokens * width);
        let ids = |of: &dyn Fn(usize) -> usize| -> Result<Buf> {
            let values: Vec<u32> = (0..tokens).map(|i| of(i) as u32).collect();
            let mut buf = device.alloc(BufType::U32, tokens)?;
            device.upload(&mut buf, 0, &values)?;
            Ok(buf)
        };
        Ok(Self {
            hidden: numbers(config.hidden)?,
            normed: numbers(config.hidden)?,
            qkv: numbers(config.q_rows() + 2 * config.kv_rows())?,
            attended: numbers(config.q_rows())?,
            gate_up: numbers(2 * config.intermediate)?,
            gated: numbers(config.intermediate)?,
            slots: ids(&|i| i / length)?,
            positions: ids(&|i| i % length)?,
            cache: LayerCache::plain(numbers(config.kv_rows())?, numbers(config.kv_rows())?),
        })
    }
}

/// The rows of the embedding for `ids`, `[ids, hidden]`.
fn embed(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let hidden = model.config.hidden;
    let mut out = vec![0.0; ids.len() * hidden];
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(hidden)) {
        let id = id as usize;
        let name = "model.embed_tokens.weight";
        model
            .weights
            .read_rows(name, id..id + 1, HostSliceMut::F32(row))?;
    }
    Ok(out)
}

/// `values` on the device, rounded to `act`.
fn upload(device: &Device, act: DType, values: &[f32]) -> Result<Buf> {
    let mut buf = device.alloc(BufType::Float(act), values.len())?;
    put(device, &mut buf, 0, values)?;
    Ok(buf)
}

/// Rounds `values` into `buf` from element `at` on.
fn put(device: &Device, buf: &mut Buf, at: usize, values: &[f32]) -> Result<()> {
    fn narrow<T: Elem>(values: &[f32]) -> Vec<T> {
        values.iter().map(|&x| T::from_f32(x)).collect()
    }
    match buf.dtype()? {
        DType::F32 => device.upload(buf, at, values),
        DType::F16 => device.upload(buf, at, &narrow::<f16>(values)),
        DType::BF16 => device.upload(buf, at, &narrow::<bf16>(values)),
    }
}

/// The first `count` elements of `buf` in f32.
fn fetch(device: &Device, buf: &Buf, count: usize) -> Result<Vec<f32>> {
    fn widen<T: HostElem + Elem>(device: &Device, buf: &Buf, count: usize) -> Result<Vec<f32>> {
        let elements = device.download::<T>(buf, 0..count)?;
        Ok(elements.into_iter().map(Elem::to_f32).collect())
    }
    match buf.dtype()? {
        DType::F32 => device.download(buf, 0..count),
        DType::F16 => widen::<f16>(device, buf, count),
        DType::BF16 => widen::<bf16>(device, buf, count),
    }
}

/// Shows the first `count` elements of `buf` in f32; on the CPU where they stand.
fn with_host(device: &Device, buf: &Buf, count: usize, look: impl FnOnce(&[f32])) -> Result<()> {
    match (device, buf.dtype()?) {
        (Device::Cpu, DType::F32) => look(&buf.host()?[..count]),
        _ => look(&fetch(device, buf, count)?),
    }
    Ok(())
}
