//! Scale factors on the host.

use half::{bf16, f16};

use crate::scheme::DType;

/// Scale factors in the precision in which their file, or the source that was quantised, holds them.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// binary32.
    F32(Vec<f32>),
    /// binary16.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
}

impl Scales {
    /// Rounds `values` to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => Self::F32(values.to_vec()),
            DType::F16 => Self::F16(values.iter().map(|&x| f16::from_f32(x)).collect()),
            DType::BF16 => Self::BF16(values.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
        }
    }

    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().size()
    }

    /// The `i`-th scale, widened.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(v) => v[i],
            Self::F16(v) => v[i].to_f32(),
            Self::BF16(v) => v[i].to_f32(),
        }
    }

    /// Seen as `[rows, columns]`, the scales as `[columns, rows]`.
    ///
    /// # Panics
    /// If there are others than so many.
    pub fn transposed(&self, rows: usize, columns: usize) -> Self {
        fn turned<T: Copy>(from: &[T], rows: usize, columns: usize) -> Vec<T> {
            assert_eq!(from.len(), rows * columns);
            let of_column = |column| (0..rows).map(move |row| from[row * columns + column]);
            (0..columns).flat_map(of_column).collect()
        }
        match self {
            Self::F32(v) => Self::F32(turned(v, rows, columns)),
            Self::F16(v) => Self::F16(turned(v, rows, columns)),
            Self::BF16(v) => Self::BF16(turned(v, rows, columns)),
        }
    }

    /// Where the first number that is not finite stands.
    pub(super) fn first_not_finite(&self) -> Option<usize> {
        match self {
            Self::F32(v) => v.iter().position(|x| !x.is_finite()),
            Self::F16(v) => v.iter().position(|x| !x.is_finite()),
            Self::BF16(v) => v.iter().position(|x| !x.is_finite()),
        }
    }
}
