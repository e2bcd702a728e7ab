//! One decoder layer on the host, in f32: what quantisers read, scale and replace.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::Result;
use crate::model::{HostSliceMut, Model};
use crate::scheme::DType;

/// The four places of a decoder layer whose linear layers share an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Query, key and value projections.
    Qkv,
    /// The attention's output projection.
    Output,
    /// Gate and up projections.
    GateUp,
    /// The down projection.
    Down,
}

impl Site {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::Output => "o",
            Self::GateUp => "gate_up",
            Self::Down => "down",
        }
    }

    /// Its place in [`Site::ALL`].
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Which of a layer's matrices they are.
    pub(super) const fn members(self) -> std::ops::Range<usize> {
        match self {
            Self::Qkv => 0..3,
            Self::Output => 3..4,
            Self::GateUp => 4..6,
            Self::Down => 6..7,
        }
    }
}

/// The names of a layer's linear layers, in the order of [`HostLayer::matrices`].
pub(super) const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Where the value and up projections stand there.
pub(super) const VALUE: usize = 2;
pub(super) const UP: usize = 5;

/// The name of the linear layer `member` of layer `index`, as in `model.layers.0.mlp.up_proj`.
pub(super) fn module(index: usize, member: usize) -> String {
    format!("model.layers.{index}.{}", MODULES[member])
}

/// A linear layer.
pub(super) struct Matrix {
    pub(super) n: usize,
    pub(super) k: usize,
    /// `[n, k]`.
    pub(super) weights: Vec<f32>,
    /// `[n]`.
    pub(super) bias: Option<Vec<f32>>,
}

/// A decoder layer.
pub(super) struct HostLayer {
    pub(super) index: usize,
    pub(super) attention_norm: Vec<f32>,
    /// Norms of each query and key head.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) mlp_norm: Vec<f32>,
    /// As [`MODULES`] names them.
    pub(super) matrices: [Matrix; 7],
}

impl HostLayer {
    /// Reads layer `index`.
    ///
    /// # Errors
    /// If a tensor is missing, cannot be read, or holds a number that is not finite.
    pub(super) fn read(model: &Model, index: usize) -> Result<Self> {
        let config = &model.config;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let matrix = |member: usize| -> Result<Matrix> {
            let name = module(index, member);
            let weight = format!("{name}.weight");
            let shape = model.weights.shape(&weight)?;
            let has_bias = match member {
                0..=2 => config.qkv_bias,
                3 => config.o_bias,
                _ => config.mlp_bias,
            };
            Ok(Matrix {
                n: shape[0],
                k: shape[1],
                weights: read(model, &weight)?,
                bias: has_bias
                    .then(|| read(model, &format!("{name}.bias")))
                    .transpose()?,
            })
        };
        let head_norm = |part: &str| read(model, &name(&format!("self_attn.{part}.weight")));
        Ok(Self {
            index,
            attention_norm: read(model, &name("input_layernorm.weight"))?,
            head_norms: if config.qk_norm {
                Some([head_norm("q_norm")?, head_norm("k_norm")?])
            } else {
                None
            },
            mlp_norm: read(model, &name("post_attention_layernorm.weight"))?,
            matrices: [
                matrix(0)?,
                matrix(1)?,
                matrix(2)?,
                matrix(3)?,
                matrix(4)?,
                matrix(5)?,
                matrix(6)?,
            ],
        })
    }

    /// The linear layers of a site.
    pub(super) fn at(&self, site: Site) -> &[Matrix] {
        &self.matrices[site.members()]
    }
}

/// A whole tensor in f32.
///
/// # Errors
/// If it is missing, cannot be read, or holds a number that is not finite.
pub(super) fn read(model: &Model, name: &str) -> Result<Vec<f32>> {
    let shape = model.weights.shape(name)?;
    let (rows, width) = match shape.as_slice() {
        [n, k] => (*n, *k),
        _ => (1, shape.iter().product()),
    };
    let mut out = vec![0.0; rows * width];
    let share = rows.div_ceil(rayon::current_num_threads()).max(1);
    out.par_chunks_mut((share * width).max(1))
        .enumerate()
        .try_for_each(|(i, part)| {
            let first = i * share;
            let rows = first..first + part.len() / width;
            model.weights.read_rows(name, rows, HostSliceMut::F32(part))
        })?;
    match out.iter().position(|x| !x.is_finite()) {
        None => Ok(out),
        Some(at) => Err(model
            .weights
            .not_finite(name, at / width, at % width, out[at])),
    }
}

/// Numbers as the bytes of `dtype`, little-endian, rounded half to even.
pub(super) fn bytes_of(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 => bytemuck::cast_slice(&narrow(values, f16::from_f32)).to_vec(),
        DType::BF16 => bytemuck::cast_slice(&narrow(values, bf16::from_f32)).to_vec(),
    }
}

fn narrow<T: Send>(values: &[f32], to: fn(f32) -> T) -> Vec<T> {
    values.par_iter().map(|&x| to(x)).collect()
}
