//! candlepower measures what a language model gives on a GPU when nothing stands between the two. Its main product is a
//! *study*: quality against speed, memory and energy for several variants of one model, with honest error bars.
//!
//! # The map, in reading order
//!
//! | module | what it is | what it must never know |
//! |---|---|---|
//! | [`error`], [`units`] | the one error with its exit codes; quantities, and the `Clock` through which time enters | anything else |
//! | [`stats`] | quantiles with validity, bootstrap intervals, paired differences, runs against runs, verdicts, steady state; pure | what the numbers mean |
//! | [`scheme`] | element types, variants, and the one canonical packed weight | files, models, devices |
//! | [`kernels`] | the ops, one file each, with CUDA sources in `kernels/`: shapes, cost, plan, CPU reference, GPU launch; buffers on a device | a model |
//! | [`model`] | configurations of every family, presets, tokenizers, and one file per checkpoint format | devices, kernels |
//! | [`engine`] | loading onto a device, the forward pass of every family, the KV cache, sampling; candle's models as the baseline | that it is timed |
//! | [`quant`] | this program's quantisers: weights and a text in, packed weights and checkpoints out | texts as files, scores, records |
//! | [`quality`] | texts, perplexity by named protocols, predictions against those of a base, tasks by lm_eval's rules | time, records |
//! | [`measure`] | clocks, trials, the sensors of a board and what they are worth, energy, memory, the environment | what is measured |
//! | [`results`] | the record and its wire form, the store, the study made of records, what is left of a base's tasks, tables, exports, the report; runs compared; the same for single ops; what other commands print as JSON | candle, CUDA, clocks |
//! | [`study`] | what to run, running one point of it, putting points on record; two builds by turns; single ops and the device's ceilings: where both sides meet | how anything is shown |
//! | [`cli`] | one file per command: parse, call, print | how anything is computed |
//!
//! Arrows point from user to used and nothing runs back: `cli → study → {quality, quant} → engine → {kernels, model} →
//! scheme → units`; `measure` and `results` stand beside that line on `stats` and `units` alone. `tests/architecture.rs`
//! reads the `use crate::` lines and holds this.
//!
//! # What holds it up
//!
//! - **One forward pass, two devices.** A step is a short list of ops over buffers that are allocated once
//!   (`engine::transformer`). Each op's `run` is one call for the CPU reference and the GPU launch, so the forward pass
//!   has no branch between them and every kernel has its judge.
//! - **One launch layer, two drivers.** What is launched, with which grid and arguments, is in [`kernels::gpu`] and in
//!   every build. It speaks to a driver: a real GPU's (feature `cuda`), or the emulator's, which runs the same kernels
//!   compiled for the host, in host memory between guards.
//! - **One packed weight** ([`scheme::PackedWeight`]) is what formats and quantisers end in: codes of four or eight bits,
//!   scales per row, group, block or tensor, what the codes stand for (symmetric, zero points, offsets, a codebook), and
//!   the order of the columns. The CPU takes it as it is; a GPU gets it repacked once into what its kernels stream, in the
//!   place of the original. A checkpoint that is quantised already becomes one layer by layer (variant `as-is`); layers
//!   that share an input but not a form stand apart. Round-to-nearest needs no data and works row by row, so it is an op
//!   ([`kernels::quantize`]) and runs where the weights are going to live; the original is never whole on the host.
//! - **The same bits in any batch.** On the CPU every sum runs in one order whatever the number of tokens or the chunk, so
//!   a row alone, in a batch, or in pieces gives identical logits. Tests hold this exactly. On a GPU it holds of attention:
//!   where a token's keys are cut into parts follows from its position alone.
//! - **Verify, then time.** A variant that fails a check (`study::verify`) gets no number.
//! - **The record is the border.** Measuring writes records, one line each, on the disk before the next point starts;
//!   everything shown is made of them. A point's key is a hash of what identifies it, so the same command resumes.
//! - **A fault costs a point.** Each variant of a study runs in a child process (`study::worker`), which makes the same
//!   plan from the same command line and is asked by points of it. What crashes, hangs or finds no room is a record with
//!   the reason, and the next point gets a new child. Variants that fit side by side take turns at each cell.
//!
//! # Where `unsafe` lives
//!
//! In `kernels/simd` (vector instructions behind tokens that prove they exist), `kernels/parallel.rs` (columns of one
//! matrix for several threads) and `kernels/gpu/` (launches), nowhere else.
//!
//! # The CUDA build
//!
//! `kernels/build.rs` compiles every `.cu` into a fatbin of its own with code for sm_80 and sm_90a, in parallel and cached
//! by content; all are in the binary. Products stream weights into matrix instructions (`linear_few.cu`, `linear_tile.cu`,
//! `linear_wgmma.cu`) or go to cuBLASLt, whichever the device's own clock finds faster for a shape when it first comes up;
//! what it found is kept on the disk for later runs. For a few tokens the norm before a product, the rounding of its input
//! to codes and the gated activation or greedy choice after it are part of its launch (`linear_fused.cu`), as
//! [`engine::StepPlan`] says, with the same bits; so gate and up lie in turn in the rows of one matrix. Attention has a
//! kernel for tokens that are alone in their slot (`attention_single.cu`), which rotates heads and writes the cache as
//! well, and two for prompts (`attention_runs.cu`, and on Hopper `attention_wgmma.cu`); the cache is plain or in codes. The
//! other ops have one simple kernel each. A decode step is recorded once for each number of sequences and then replayed as
//! a CUDA graph, or, for one sequence and where it is asked for, gathered into a single launch that runs the same ops by
//! blocks that wait for each other (`step.cu`, `kernels/gpu/step.rs`); its tokens are the next one's input and are told to
//! the host by `advance.cu`, so that steps are asked for ahead (`engine::generate`). `tests/cuda_build` reads the machine
//! code: spills, widths of loads, budgets of instructions. Without the `cuda` feature none of this is built or needed.

pub mod cli;
pub mod engine;
pub mod error;
pub mod kernels;
pub mod measure;
pub mod model;
pub mod quality;
pub mod quant;
pub mod results;
pub mod scheme;
pub mod stats;
pub mod study;
pub mod units;
