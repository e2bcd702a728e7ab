//! Where both sides meet: what to run ([`Plan`]), running one point of it, and putting points on record. Prints
//! nothing: progress goes to a [`Watcher`].

mod ablate;
mod base;
mod bench;
mod capacity;
mod ceilings;
mod facts;
mod fit;
mod job;
pub mod microbench;
mod plan;
mod prompts;
mod quality;
mod quantise;
mod questions;
mod run;
mod runner;
mod sensors;
mod single;
mod stored;
mod tasks;
mod verify;
mod work;

pub use ablate::stages;
pub use capacity::{Question, capacity};
pub use ceilings::{Effort, ceilings};
pub use facts::{environment, gpu_facts};
pub use plan::{
    BasePlan, DeviceChoice, EngineKind, Plan, QualityPlan, Switches, TaskPlan, open_device,
};
pub use prompts::random_tokens;
pub use quantise::{Calibration, CheckpointWish, QuantiseWatch, Quantising};
pub use questions::recoveries;
pub use run::{Outcome, Stage, Watcher, check_inputs, run};
pub use runner::activation_dtype;
pub use single::{Generated, Generation, Scoring, TextScore, generate, logits, score_text};
pub use stored::{default_variants, notice};
pub use tasks::{Evaluated, Evaluation, evaluate};
