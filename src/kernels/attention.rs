//! Causal attention over the cache: every token attends to the positions of its own slot up to its own.
//!
//! The CPU face walks the cache in blocks of [`KEYS`] positions with a running maximum (Dao et al. 2022, Milakov and
//! Gimelshein 2018). Blocks start at multiples of [`KEYS`] whatever the batch or chunk, and a block that a token may
//! not see changes none of its bits, so chunked and whole prefill agree exactly.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::parallel::{Columns, for_column_tiles, least};
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// Positions of a block of the cache.
const KEYS: usize = 64;
/// Tokens of one parallel task.
const TOKENS: usize = 32;
/// Query rows of the innermost tile.
const TILE: usize = 4;

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

/// One layer's cache on its device, keys and values each `[slots, kv_heads, capacity, head_dim]`.
pub struct LayerCache {
    /// Keys, rotated.
    pub k: Buf,
    /// Values.
    pub v: Buf,
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

    /// Traffic and arithmetic when the tokens see `seen` positions in all and `cached` distinct ones.
    pub fn cost(&self, act: DType, seen: f64, cached: f64) -> Cost {
        let size = act.size() as f64;
        let rows = (self.tokens * self.heads * self.head_dim) as f64 * size;
        Cost {
            read: rows + 2.0 * cached * (self.kv_heads * self.head_dim) as f64 * size,
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
                self.reference::<T>(qkv.host()?, places, cache.k.host()?, cache.v.host()?, out);
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::attention(gpu, self, qkv, places, cache, out),
        }
    }

    fn reference<T: Elem + HostElem>(
        &self,
        qkv: &[T],
        places: Hosted<'_>,
        k: &[T],
        v: &[T],
        out: &mut [T],
    ) {
        let width = self.heads * self.head_dim;
        let longest = places.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let each = longest * self.head_dim * TOKENS.min(self.tokens);
        out.par_chunks_mut(TOKENS * width)
            .with_min_len(least(each * self.kv_heads))
            .enumerate()
            .for_each(|(chunk, out)| {
                let first = chunk * TOKENS;
                for_column_tiles(out, width, width / self.kv_heads, each, |columns| {
                    SCRATCH.with_borrow_mut(|scratch| {
                        dispatch(Task {
                            op: self,
                            qkv,
                            places,
                            k,
                            v,
                            first,
                            columns,
                            scratch,
                        });
                    });
                });
            });
    }
}

/// [`Places`] on the host.
#[derive(Clone, Copy)]
struct Hosted<'a> {
    slots: &'a [u32],
    positions: &'a [u32],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A thread's working memory, kept between calls. Rows are padded with zeros to a multiple of sixteen.
#[derive(Default)]
struct Scratch {
    /// Queries, `[rows, padded]`.
    q: Vec<f32>,
    /// Unnormalised outputs, `[rows, padded]`.
    o: Vec<f32>,
    /// Running maximum and sum of each row.
    state: Vec<(f32, f32)>,
    /// A block of keys, `[KEYS, padded]`.
    k: Vec<f32>,
    /// A block of values, `[KEYS, padded]`.
    v: Vec<f32>,
}

/// Some tokens and one key/value head.
struct Task<'a, 's, T> {
    op: &'a Attention,
    qkv: &'a [T],
    places: Hosted<'a>,
    k: &'a [T],
    v: &'a [T],
    /// Number of the first token, the one of row 0 of `columns`.
    first: usize,
    columns: Columns<'a, T>,
    scratch: &'s mut Scratch,
}

impl<T: Elem + HostElem> Work for Task<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let last = (self.first + TOKENS).min(self.op.tokens);
        let mut start = self.first;
        while start < last {
            // A run of tokens that share a slot shares the blocks of its cache.
            let slot = self.places.slots[start];
            let run = self.places.slots[start..last]
                .iter()
                .take_while(|&&other| other == slot)
                .count();
            self.attend(s, start..start + run, slot as usize);
            start += run;
        }
    }
}

impl<T: Elem + HostElem> Task<'_, '_, T> {
    #[inline(always)]
    fn attend<S: Simd>(&mut self, s: S, tokens: Range<usize>, slot: usize) {
        let (dim, padded) = (self.op.head_dim, self.op.head_dim.next_multiple_of(LANES));
        let group = self.op.heads / self.op.kv_heads;
        let kv_head = self.columns.range().start / (group * dim);
        self.load_queries(&tokens, kv_head * group, padded);
        let seen = tokens
            .clone()
            .map(|t| self.places.positions[t] as usize + 1)
            .max()
            .unwrap_or(0);
        let base = (slot * self.op.kv_heads + kv_head) * self.op.capacity * dim;
        for block in (0..seen).step_by(KEYS) {
            let keys = block..(block + KEYS).min(seen);
            let source = base + keys.start * dim..base + keys.end * dim;
            widen(&self.k[source.clone()], dim, padded, &mut self.scratch.k);
            widen(&self.v[source], dim, padded, &mut self.scratch.v);
            for row in (0..tokens.len() * group).step_by(TILE) {
                let rows = row..(row + TILE).min(tokens.len() * group);
                let limits: [usize; TILE] = std::array::from_fn(|i| {
                    let token = tokens.start + (row + i).min(rows.end - 1) / group;
                    (self.places.positions[token] as usize + 1).saturating_sub(keys.start)
                });
                if limits.iter().any(|&limit| limit > 0) {
                    self.scratch.block(s, rows, limits, padded, self.op.scale);
                }
            }
        }
        for (i, token) in tokens.enumerate() {
            let out = self.columns.row(token - self.first);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                let row = i * group + head;
                let sum = self.scratch.state[row].1;
                let o = &self.scratch.o[row * padded..][..dim];
                out.iter_mut()
                    .zip(o)
                    .for_each(|(out, o)| *out = T::from_f32(o / sum));
            }
        }
    }

    /// Fills the queries of `tokens` (rows ordered token, head) and clears what is computed of them.
    #[inline(always)]
    fn load_queries(&mut self, tokens: &Range<usize>, head: usize, padded: usize) {
        let (dim, group) = (self.op.head_dim, self.op.heads / self.op.kv_heads);
        // The last tile is filled up with rows that are computed and thrown away.
        let rows = (tokens.len() * group).next_multiple_of(TILE);
        let scratch = &mut *self.scratch;
        scratch.q.clear();
        scratch.q.resize(rows * padded, 0.0);
        scratch.o.clear();
        scratch.o.resize(rows * padded, 0.0);
        scratch.state.clear();
        scratch.state.resize(rows, (f32::NEG_INFINITY, 0.0));
        for (i, token) in tokens.clone().enumerate() {
            let q = &self.qkv[token * self.op.qkv_width() + head * dim..][..group * dim];
            for (h, q) in q.chunks_exact(dim).enumerate() {
                let wide = &mut scratch.q[(i * group + h) * padded..][..dim];
                wide.iter_mut()
                    .zip(q)
                    .for_each(|(wide, q)| *wide = q.to_f32());
            }
        }
    }
}

/// `rows [n, dim]` as f32, each padded with zeros.
#[inline(always)]
fn widen<T: Elem>(rows: &[T], dim: usize, padded: usize, out: &mut Vec<f32>) {
    if out.len() != KEYS * padded {
        out.clear();
        out.resize(KEYS * padded, 0.0);
    }
    for (out, row) in out.chunks_exact_mut(padded).zip(rows.chunks_exact(dim)) {
        let (out, pad) = out.split_at_mut(dim);
        out.iter_mut()
            .zip(row)
            .for_each(|(out, x)| *out = x.to_f32());
        pad.fill(0.0);
    }
}

impl Scratch {
    /// Takes a block of keys into the four rows from `rows.start` on, of which row `i` sees the first `limits[i]`.
    #[inline(always)]
    fn block<S: Simd>(
        &mut self,
        s: S,
        rows: Range<usize>,
        limits: [usize; TILE],
        padded: usize,
        scale: f32,
    ) {
        let steps = padded / LANES;
        let q: [_; TILE] = std::array::from_fn(|i| {
            &self.q[(rows.start + i) * padded..][..padded]
                .as_chunks::<LANES>()
                .0[..steps]
        });
        let mut p = [[f32::NEG_INFINITY; KEYS]; TILE];
        let most = limits.into_iter().max().unwrap_or(0).min(KEYS);
        for key in (0..most).step_by(TILE) {
            let k: [_; TILE] = std::array::from_fn(|i| {
                &self.k[(key + i) * padded..][..padded]
                    .as_chunks::<LANES>()
                    .0[..steps]
            });
            let mut sums = [[s.splat(0.0); TILE]; TILE];
            for step in 0..steps {
                let mut wide = [s.splat(0.0); TILE];
                for (wide, k) in wide.iter_mut().zip(k) {
                    *wide = s.load(&k[step]);
                }
                for (sums, q) in sums.iter_mut().zip(q) {
                    let q = s.load(&q[step]);
                    for (sum, k) in sums.iter_mut().zip(wide) {
                        *sum = s.fma(k, q, *sum);
                    }
                }
            }
            for ((p, sums), limit) in p.iter_mut().zip(sums).zip(limits) {
                for (i, sum) in sums.into_iter().enumerate() {
                    p[key + i] = if key + i < limit {
                        s.sum(sum) * scale
                    } else {
                        f32::NEG_INFINITY
                    };
                }
            }
        }
        let keep = self.weights(s, rows.start, &mut p);
        self.values(s, rows.start, &p, keep, most, padded);
    }

    /// Turns scores into weights under the running maximum; gives what older outputs are multiplied by.
    #[inline(always)]
    fn weights<S: Simd>(&mut self, s: S, row: usize, p: &mut [[f32; KEYS]; TILE]) -> [f32; TILE] {
        let mut keeps = [1.0; TILE];
        for ((p, keep), state) in p.iter_mut().zip(&mut keeps).zip(&mut self.state[row..]) {
            let (p, _) = p.as_chunks_mut::<LANES>();
            let (old, sum) = *state;
            let mut most = s.splat(old);
            for p in &*p {
                most = s.max(s.load(p), most);
            }
            let max = s.largest(most);
            if max == f32::NEG_INFINITY {
                p.fill([0.0; LANES]);
                continue;
            }
            let mut total = s.splat(0.0);
            for p in p {
                let e = s.exp(s.sub(s.load(p), s.splat(max)));
                total = s.add(total, e);
                s.store(e, p);
            }
            *keep = (old - max).exp();
            *state = (max, sum * *keep + s.sum(total));
        }
        keeps
    }

    /// `o = o * keep + p V` for four rows.
    #[inline(always)]
    fn values<S: Simd>(
        &mut self,
        s: S,
        row: usize,
        p: &[[f32; KEYS]; TILE],
        keep: [f32; TILE],
        keys: usize,
        padded: usize,
    ) {
        let steps = padded / LANES;
        let (v, _) = self.v.as_chunks::<LANES>();
        let (o, _) = self.o[row * padded..][..TILE * padded].as_chunks_mut::<LANES>();
        for step in 0..steps {
            let mut sums = [s.splat(0.0); TILE];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul(s.load(&o[i * steps + step]), s.splat(keep[i]));
            }
            for (key, v) in v.iter().skip(step).step_by(steps).take(keys).enumerate() {
                let v = s.load(v);
                for (sum, p) in sums.iter_mut().zip(p) {
                    *sum = s.fma(s.splat(p[key]), v, *sum);
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                s.store(sum, &mut o[i * steps + step]);
            }
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
            let cache = LayerCache {
                k: Buf::from_vec(k),
                v: Buf::from_vec(v),
            };
            let mut out = Buf::from_vec(vec![0.0_f32; truth.len()]);
            op.run(&Device::Cpu, &Buf::from_vec(qkv), places, &cache, &mut out)
                .unwrap();
            for (a, b) in out.host::<f32>().unwrap().iter().zip(&truth) {
                assert!((f64::from(*a) - b).abs() < 2e-6, "{a} {b}");
            }
        }
    }
}
