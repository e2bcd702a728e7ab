//! The kernel microbenchmark: ops, one at a time, over shapes, numbers of tokens and variants; verified, then timed,
//! each cell on the disk before the next begins.
//!
//! `plan` says what is run; `ops` is the table of what can be; `bench` is what an op must offer to be judged and
//! timed, `linear` and `rows` and `heads` the ops that do; `judge` compares, `timer` times, `run` goes through the cells.

mod bench;
mod heads;
mod judge;
mod linear;
mod ops;
mod plan;
mod rows;
mod run;
pub(super) mod timer;

pub use ops::{OPS, OpEntry};
pub use plan::MicrobenchPlan;
pub use run::{MicrobenchOutcome, MicrobenchWatcher, check_inputs, run};
