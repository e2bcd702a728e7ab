//! Causal attention over the cache: every token attends to the positions of its own slot up to its own.
//!
//! The CPU face (`cpu`) walks the cache in blocks of 64 positions with a running maximum (Dao et al. 2022, Milakov and
//! Gimelshein 2018). Blocks start at multiples of 64 whatever the batch or chunk, and a block that a token may not see
//! changes none of its bits, so chunked and whole prefill agree exactly. `cache` is what is attended to; `append` is
//! attention together with what writes it.

mod append;
mod cache;
mod cpu;

pub use append::AppendAttend;
pub(super) use cache::other_format;
pub use cache::{CacheScales, LayerCache};

use self::cpu::Hosted;
use super::device::{Buf, Device, with_dtype};
use super::{Cost, check_len};
use crate::error::{Error, Result};
use crate::scheme::{DType, KvFormat};

/// Heads and cache of one layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Tokens of this step.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Positions that a slot of the cache can hold.
    pub capacity: usize,
    /// How the cache holds them.
    pub kv: KvFormat,
    /// What scores are multiplied by, `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How the tokens stand in their slots, which decides how a GPU goes about it, not what comes out.
    pub queries: Queries,
}

/// How the tokens of a step stand in their slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// Every token is alone in its slot, as in decoding.
    Single,
    /// Tokens of a slot one after another, as in prompts.
    Runs,
}

/// Where the tokens of a step stand: slot and position of each, `[tokens]`, as `u32`.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    /// Slot of the cache.
    pub slots: &'a Buf,
    /// Position in the sequence, from 0.
    pub positions: &'a Buf,
}

impl Attention {
    /// Width of a row of the fused projection: queries, keys, values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes of the keys, or of the values, of one position.
    pub fn position_bytes(&self, act: DType) -> usize {
        self.kv_heads * self.kv.vector_bytes(act.size(), self.head_dim)
    }

    /// Refuses heads that `device` has no kernel for.
    ///
    /// # Errors
    /// [`Error::Config`] with the sizes there are.
    pub fn check_head_dim(device: &Device, head_dim: usize) -> Result<()> {
        match device {
            Device::Cpu => Ok(()),
            Device::Gpu(_) if head_dim <= super::gpu::MAX_HEAD_DIM => Ok(()),
            Device::Gpu(_) => Err(Error::Config(format!(
                "no kernel attends with heads of {head_dim} numbers: on a GPU there are fast ones for {}, and one for any \
                 even number up to {}; use --device cpu",
                super::gpu::fast_head_dims(),
                super::gpu::MAX_HEAD_DIM
            ))),
        }
    }

    /// Traffic and arithmetic when the tokens see `seen` positions in all and `cached` distinct ones.
    pub fn cost(&self, act: DType, seen: f64, cached: f64) -> Cost {
        let size = act.size() as f64;
        let rows = (self.tokens * self.heads * self.head_dim) as f64 * size;
        Cost {
            read: rows + 2.0 * cached * self.position_bytes(act) as f64,
            written: rows,
            flops: 4.0 * seen * (self.heads * self.head_dim) as f64,
        }
    }

    /// How it is computed on `device` with a cache of type `act`, in words.
    pub fn plan(&self, device: &Device, act: DType) -> String {
        match device {
            Device::Cpu => "blocks of 64 positions".to_owned(),
            Device::Gpu(gpu) => super::gpu::attention_kernel(gpu, self, act).to_string(),
        }
    }

    /// `out [tokens, heads, head_dim]` from the queries at the head of each row of `qkv [tokens, qkv_width]` and the
    /// cache, into which this step's keys and values have been written.
    ///
    /// # Errors
    /// If a buffer is shorter than the shapes say.
    pub fn run(
        &self,
        device: &Device,
        qkv: &Buf,
        places: Places<'_>,
        cache: &LayerCache,
        out: &mut Buf,
    ) -> Result<()> {
        check_len("attention qkv", qkv, self.tokens * self.qkv_width())?;
        check_len(
            "attention output",
            out,
            self.tokens * self.heads * self.head_dim,
        )?;
        check_len("attention slots", places.slots, self.tokens)?;
        check_len("attention positions", places.positions, self.tokens)?;
        match device {
            Device::Cpu => with_dtype!(out.dtype()?, T => {
                let places = Hosted {
                    slots: &places.slots.host()?[..self.tokens],
                    positions: &places.positions.host()?[..self.tokens],
                };
                let out = &mut out.host_mut::<T>()?[..self.tokens * self.heads * self.head_dim];
                let (k, v) = cache.host::<T>(self.kv)?;
                self.reference::<T>(qkv.host()?, places, k, v, out);
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::attention(gpu, self, qkv, places, cache, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention as the textbook has it, in f64.
    fn textbook(
        op: &Attention,
        qkv: &[f32],
        slots: &[u32],
        positions: &[u32],
        k: &[f32],
        v: &[f32],
    ) -> Vec<f64> {
        let mut out = Vec::new();
        for (t, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
            for head in 0..op.heads {
                let q = &qkv[t * op.qkv_width() + head * op.head_dim..][..op.head_dim];
                let kv_head = head / (op.heads / op.kv_heads);
                let at = |j: usize| {
                    ((slot as usize * op.kv_heads + kv_head) * op.capacity + j) * op.head_dim
                };
                let scores: Vec<f64> = (0..=position as usize)
                    .map(|j| {
                        let dot: f64 = (0..op.head_dim)
                            .map(|d| f64::from(q[d]) * f64::from(k[at(j) + d]))
                            .sum();
                        (dot * f64::from(op.scale)).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                out.extend((0..op.head_dim).map(|d| {
                    scores
                        .iter()
                        .enumerate()
                        .map(|(j, p)| p * f64::from(v[at(j) + d]))
                        .sum::<f64>()
                        / total
                }));
            }
        }
        out
    }

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i * 2_654_435 + seed * 97) % 1000) as f32 / 500.0 - 1.0)
            .collect()
    }

    #[test]
    fn ragged_batches_equal_the_textbook_and_ignore_what_lies_beyond() {
        for (heads, kv_heads, head_dim) in [(6, 2, 64), (4, 4, 20), (7, 1, 128)] {
            let capacity = 150;
            let slots: Vec<u32> = [vec![2; 1], vec![0; 70], vec![1; 3]].concat();
            let positions: Vec<u32> = std::iter::once(129)
                .chain(60..130)
                .chain([63, 64, 65])
                .collect();
            let op = Attention {
                tokens: slots.len(),
                heads,
                kv_heads,
                head_dim,
                capacity,
                kv: KvFormat::Auto,
                scale: (head_dim as f32).powf(-0.5),
                queries: Queries::Runs,
            };
            let qkv = noise(op.tokens * op.qkv_width(), 1);
            let (mut k, mut v) = (
                noise(3 * kv_heads * capacity * head_dim, 2),
                noise(3 * kv_heads * capacity * head_dim, 3),
            );
            for (i, (k, v)) in k.iter_mut().zip(&mut v).enumerate() {
                if i / head_dim % capacity >= 130 {
                    (*k, *v) = (f32::NAN, f32::NAN);
                }
            }
            let truth = textbook(&op, &qkv, &slots, &positions, &k, &v);
            let (slots, positions) = (Buf::from_vec(slots), Buf::from_vec(positions));
            let places = Places {
                slots: &slots,
                positions: &positions,
            };
            let cache = LayerCache::plain(Buf::from_vec(k), Buf::from_vec(v));
            let mut out = Buf::from_vec(vec![0.0_f32; truth.len()]);
            op.run(&Device::Cpu, &Buf::from_vec(qkv), places, &cache, &mut out)
                .unwrap();
            for (a, b) in out.host::<f32>().unwrap().iter().zip(&truth) {
                assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
            }
        }
    }
}
