//! One layer's keys and values.

use std::sync::LazyLock;

use crate::error::{Error, Result};
use crate::kernels::device::HostElem;
use crate::kernels::{Buf, BufType, Device};
use crate::scheme::{CodeFormat, DType, Elem, KvFormat};

/// One layer's cache on its device, keys and values each `[slots, kv_heads, capacity, head_dim]`: vectors of `head_dim`
/// numbers, in the type of the activations or as codes.
pub struct LayerCache {
    /// Keys, rotated.
    pub k: Buf,
    /// Values.
    pub v: Buf,
    /// Of codes.
    pub scales: Option<CacheScales>,
}

/// A scale for each vector, f32 `[slots, kv_heads, capacity]`.
pub struct CacheScales {
    /// Of keys.
    pub k: Buf,
    /// Of values.
    pub v: Buf,
}

impl LayerCache {
    /// Room for `vectors` keys and as many values beside activations of type `act`, all zero.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn new(
        device: &Device,
        format: KvFormat,
        act: DType,
        vectors: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let (kind, coded) = match format.codes() {
            None => (BufType::Float(act), false),
            Some(_) => (BufType::U8, true),
        };
        let scales = || device.alloc(BufType::Float(DType::F32), vectors);
        Ok(Self {
            k: device.alloc(kind, vectors * head_dim)?,
            v: device.alloc(kind, vectors * head_dim)?,
            scales: if coded {
                Some(CacheScales {
                    k: scales()?,
                    v: scales()?,
                })
            } else {
                None
            },
        })
    }

    /// Keys and values as they are, without codes.
    pub const fn plain(k: Buf, v: Buf) -> Self {
        Self { k, v, scales: None }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let scales = self.scales.as_ref();
        let scales = scales.map_or(0, |scales| scales.k.bytes() + scales.v.bytes());
        self.k.bytes() + self.v.bytes() + scales
    }

    /// Keys and values on the host, for a cache of this format.
    pub(super) fn host<T: Elem + HostElem>(
        &self,
        format: KvFormat,
    ) -> Result<(HostVectors<'_, T>, HostVectors<'_, T>)> {
        let scales = self.scales.as_ref();
        Ok((
            HostVectors::of(&self.k, scales.map(|scales| &scales.k), format)?,
            HostVectors::of(&self.v, scales.map(|scales| &scales.v), format)?,
        ))
    }

    /// The same, to write.
    pub(in crate::kernels) fn host_mut<T: Elem + HostElem>(
        &mut self,
        format: KvFormat,
    ) -> Result<[HostVectorsMut<'_, T>; 2]> {
        let (k_scales, v_scales) = match &mut self.scales {
            Some(scales) => (Some(&mut scales.k), Some(&mut scales.v)),
            None => (None, None),
        };
        Ok([
            HostVectorsMut::of(&mut self.k, k_scales, format)?,
            HostVectorsMut::of(&mut self.v, v_scales, format)?,
        ])
    }
}

/// A cache that was made for another format.
pub(in crate::kernels) fn other_format(format: KvFormat) -> Error {
    Error::Internal(format!("a cache of another format than {format}"))
}

/// Vectors on the host, to read.
#[derive(Clone, Copy)]
pub(super) enum HostVectors<'a, T> {
    Plain(&'a [T]),
    Coded {
        codes: &'a [u8],
        scales: &'a [f32],
        /// What each code stands for.
        values: &'static [f32; 256],
    },
}

impl<'a, T: Elem + HostElem> HostVectors<'a, T> {
    fn of(numbers: &'a Buf, scales: Option<&'a Buf>, format: KvFormat) -> Result<Self> {
        match (format.codes(), scales) {
            (None, None) => Ok(Self::Plain(numbers.host()?)),
            (Some(codes), Some(scales)) => Ok(Self::Coded {
                codes: numbers.host()?,
                scales: scales.host()?,
                values: values_of(codes),
            }),
            _ => Err(other_format(format)),
        }
    }
}

fn values_of(format: CodeFormat) -> &'static [f32; 256] {
    fn all(format: CodeFormat) -> [f32; 256] {
        std::array::from_fn(|code| format.value(code as u8))
    }
    static INT8: LazyLock<[f32; 256]> = LazyLock::new(|| all(CodeFormat::I8));
    static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| all(CodeFormat::E4M3));
    if format == CodeFormat::E4M3 {
        &E4M3
    } else {
        &INT8
    }
}

/// Vectors on the host, to write.
pub(in crate::kernels) enum HostVectorsMut<'a, T> {
    Plain(&'a mut [T]),
    Coded(KvFormat, &'a mut [u8], &'a mut [f32]),
}

impl<'a, T: Elem + HostElem> HostVectorsMut<'a, T> {
    fn of(numbers: &'a mut Buf, scales: Option<&'a mut Buf>, format: KvFormat) -> Result<Self> {
        match (format.codes(), scales) {
            (None, None) => Ok(Self::Plain(numbers.host_mut()?)),
            (Some(_), Some(scales)) => {
                Ok(Self::Coded(format, numbers.host_mut()?, scales.host_mut()?))
            }
            _ => Err(other_format(format)),
        }
    }

    /// Writes vector number `at`.
    pub(in crate::kernels) fn write(&mut self, at: usize, x: &[T]) {
        let numbers = at * x.len()..(at + 1) * x.len();
        match self {
            Self::Plain(all) => all[numbers].copy_from_slice(x),
            Self::Coded(format, codes, scales) => {
                let x = x.iter().map(|x| x.to_f32());
                scales[at] = format.encode(x, &mut codes[numbers]);
            }
        }
    }
}
