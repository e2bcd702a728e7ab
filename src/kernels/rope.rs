//! Between projection and attention: head norms, rotary position embedding (Su et al. 2021, in the half-split order
//! of GPT-NeoX), and the new keys' and values' way into the cache.

use rayon::prelude::*;

use super::attention::{Attention, LayerCache, Places};
use super::device::{Buf, Device, HostElem, with_dtype};
use super::norm::normalise_in_place;
use super::parallel::least;
use super::{Cost, check_len};
use crate::error::{Error, Result};
use crate::scheme::{DType, Elem};

/// Cosines and sines of every position, f32 `[positions, head_dim / 2]` each.
pub struct RopeTable {
    /// Cosines.
    pub cos: Buf,
    /// Sines.
    pub sin: Buf,
    /// Positions covered.
    pub positions: usize,
}

impl RopeTable {
    /// The table for these inverse frequencies (`[head_dim / 2]`) on `device`.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn new(device: &Device, inverse_frequencies: &[f32], positions: usize) -> Result<Self> {
        // The angle is a product of two f32, as transformers has it; its functions are taken in full precision.
        let angle = |p: usize, f: f32| f64::from(p as f32 * f);
        let table = |g: fn(f64) -> f64| -> Result<Buf> {
            let values: Vec<f32> = (0..positions)
                .flat_map(|p| {
                    inverse_frequencies
                        .iter()
                        .map(move |&f| g(angle(p, f)) as f32)
                })
                .collect();
            let mut buf = device.alloc(<f32 as HostElem>::KIND, values.len())?;
            device.upload(&mut buf, 0, &values)?;
            Ok(buf)
        };
        Ok(Self {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            positions,
        })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.cos.bytes() + self.sin.bytes()
    }
}

/// Weights of the norms that Qwen3 applies to each query and key head, `[head_dim]` each.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Of queries.
    pub q: &'a Buf,
    /// Of keys.
    pub k: &'a Buf,
    /// Keeps the root from vanishing.
    pub eps: f32,
}

/// Rotates queries and keys in place and writes keys and values to the cache; shapes are those of the attention that
/// follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeAppend(pub Attention);

impl RopeAppend {
    /// Traffic and arithmetic in activations of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let size = act.size() as f64;
        let qkv = (self.0.tokens * self.0.qkv_width()) as f64;
        let kv = (self.0.tokens * 2 * self.0.position_bytes(act)) as f64;
        Cost {
            read: qkv * size,
            written: qkv * size + kv,
            flops: 3.0 * qkv,
        }
    }

    /// Works on `qkv [tokens, qkv_width]`.
    ///
    /// # Errors
    /// If a buffer is too short or a place lies outside the cache.
    pub fn run(
        &self,
        device: &Device,
        qkv: &mut Buf,
        norms: Option<HeadNorms<'_>>,
        table: &RopeTable,
        places: Places<'_>,
        cache: &mut LayerCache,
    ) -> Result<()> {
        check_len("rope qkv", qkv, self.0.tokens * self.0.qkv_width())?;
        check_len("rope slots", places.slots, self.0.tokens)?;
        check_len("rope positions", places.positions, self.0.tokens)?;
        match device {
            Device::Cpu => with_dtype!(qkv.dtype()?, T => {
                self.reference::<T>(qkv.host_mut()?, norms, table, places, cache)
            }),
            Device::Gpu(gpu) => {
                super::gpu::rope_append(gpu, self, qkv, norms, table, places, cache)
            }
        }
    }

    fn reference<T: Elem + HostElem>(
        &self,
        qkv: &mut [T],
        norms: Option<HeadNorms<'_>>,
        table: &RopeTable,
        places: Places<'_>,
        cache: &mut LayerCache,
    ) -> Result<()> {
        let Attention {
            tokens,
            heads,
            kv_heads,
            head_dim,
            capacity,
            ..
        } = self.0;
        let (slots, positions) = (places.slots.host::<u32>()?, places.positions.host::<u32>()?);
        let norms = match norms {
            Some(n) => Some((n.q.host::<T>()?, n.k.host::<T>()?, n.eps)),
            None => None,
        };
        let (cos, sin) = (table.cos.host::<f32>()?, table.sin.host::<f32>()?);
        let limit = capacity.min(table.positions);
        if let Some(position) = positions[..tokens].iter().find(|&&p| p as usize >= limit) {
            return Err(Error::Internal(format!(
                "position {position} lies beyond the cache of {limit}"
            )));
        }
        let width = self.0.qkv_width();
        qkv[..tokens * width]
            .par_chunks_mut(width)
            .with_min_len(least(width))
            .enumerate()
            .for_each(|(t, row)| {
                let half = positions[t] as usize * (head_dim / 2)
                    ..(positions[t] as usize + 1) * (head_dim / 2);
                for (head, x) in row
                    .chunks_exact_mut(head_dim)
                    .take(heads + kv_heads)
                    .enumerate()
                {
                    if let Some((q, k, eps)) = norms {
                        normalise_in_place(x, if head < heads { q } else { k }, eps);
                    }
                    rotate(x, &cos[half.clone()], &sin[half.clone()]);
                }
            });
        let [mut k, mut v] = cache.host_mut::<T>(self.0.kv)?;
        for (t, row) in qkv[..tokens * width].chunks_exact(width).enumerate() {
            let (new_k, new_v) = row[heads * head_dim..].split_at(kv_heads * head_dim);
            for head in 0..kv_heads {
                let at = (slots[t] as usize * kv_heads + head) * capacity + positions[t] as usize;
                let range = head * head_dim..(head + 1) * head_dim;
                k.write(at, &new_k[range.clone()]);
                v.write(at, &new_v[range]);
            }
        }
        Ok(())
    }
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for the halves of a head.
fn rotate<T: Elem>(x: &mut [T], cos: &[f32], sin: &[f32]) {
    let (a, b) = x.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y) = (a.to_f32(), b.to_f32());
        *a = T::from_f32(x * cos - y * sin);
        *b = T::from_f32(y * cos + x * sin);
    }
}
