//! Attention on the CPU: the cache in blocks of [`KEYS`] positions with a running maximum.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Attention;
use super::cache::HostVectors;
use crate::kernels::device::HostElem;
use crate::kernels::parallel::{Columns, for_column_tiles, least};
use crate::kernels::simd::{LANES, Simd, Work, dispatch};
use crate::scheme::Elem;

/// Positions of a block of the cache.
const KEYS: usize = 64;
/// Tokens of one parallel task.
const TOKENS: usize = 32;
/// Query rows of the innermost tile.
const TILE: usize = 4;

impl Attention {
    /// The CPU face: `out [tokens, heads, head_dim]`.
    pub(super) fn reference<T: Elem + HostElem>(
        &self,
        qkv: &[T],
        places: Hosted<'_>,
        k: HostVectors<'_, T>,
        v: HostVectors<'_, T>,
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

/// [`Places`](super::Places) on the host.
#[derive(Clone, Copy)]
pub(super) struct Hosted<'a> {
    pub(super) slots: &'a [u32],
    pub(super) positions: &'a [u32],
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
    k: HostVectors<'a, T>,
    v: HostVectors<'a, T>,
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
        let base = (slot * self.op.kv_heads + kv_head) * self.op.capacity;
        for block in (0..seen).step_by(KEYS) {
            let keys = block..(block + KEYS).min(seen);
            let vectors = base + keys.start..base + keys.end;
            widen(self.k, vectors.clone(), dim, padded, &mut self.scratch.k);
            widen(self.v, vectors, dim, padded, &mut self.scratch.v);
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

/// Vectors of `dim` numbers as f32, each padded with zeros.
#[inline(always)]
fn widen<T: Elem>(
    all: HostVectors<'_, T>,
    vectors: Range<usize>,
    dim: usize,
    padded: usize,
    out: &mut Vec<f32>,
) {
    if out.len() != KEYS * padded {
        out.clear();
        out.resize(KEYS * padded, 0.0);
    }
    let numbers = vectors.start * dim..vectors.end * dim;
    let out = out.chunks_exact_mut(padded).map(|out| {
        let (out, pad) = out.split_at_mut(dim);
        pad.fill(0.0);
        out
    });
    match all {
        HostVectors::Plain(x) => {
            for (out, row) in out.zip(x[numbers].chunks_exact(dim)) {
                out.iter_mut()
                    .zip(row)
                    .for_each(|(out, x)| *out = x.to_f32());
            }
        }
        HostVectors::Coded {
            codes,
            scales,
            values,
        } => {
            let rows = codes[numbers].chunks_exact(dim).zip(&scales[vectors]);
            for (out, (row, scale)) in out.zip(rows) {
                out.iter_mut()
                    .zip(row)
                    .for_each(|(out, &code)| *out = values[usize::from(code)] * scale);
            }
        }
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
