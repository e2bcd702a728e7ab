//! Where both sides meet: what to run ([`Plan`]), running one point of it, and putting points on record. Prints
//! nothing: progress goes to a [`Watcher`].

mod ablate;
mod base;
mod bench;
mod capacity;
mod ceilings;
mod energy;
mod evaluations;
mod facts;
mod finite;
mod fit;
mod inputs;
mod job;
mod ledger;
mod manifest;
pub mod microbench;
mod plan;
mod power;
mod programs;
mod prompts;
mod quality;
mod quantise;
mod questions;
mod run;
mod runner;
#[cfg(test)]
mod scripted;
mod sensors;
mod single;
mod stored;
mod target;
mod tasks;
mod throttled;
mod turns;
mod verify;
mod work;
mod worker;

pub use ablate::stages;
pub use capacity::{Question, capacity};
pub use ceilings::{Effort, ceilings};
pub use energy::EnergyPlan;
pub use evaluations::{Evaluations, schemas};
pub use facts::{environment, gpu_facts};
pub use inputs::check_inputs;
pub use manifest::manifest;
pub use plan::{
    BasePlan, DeviceChoice, EngineKind, Plan, QualityPlan, Switches, TaskPlan, open_device,
};
pub use power::power_self_test;
pub use programs::{Contender, in_turns as programs_in_turns};
pub use prompts::random_tokens;
pub use quality::usual_context;
pub use quantise::{Calibration, CheckpointWish, QuantiseWatch, Quantising};
pub use questions::recoveries;
pub use run::{Isolation, Outcome, Stage, Watcher, run};
pub use runner::activation_dtype;
pub use single::{Generated, Generation, Scoring, TextScore, generate, logits, score_text};
pub use stored::{default_variants, notice};
pub use tasks::{Evaluated, Evaluation, SampleLog, evaluate};
pub use worker::{Faults, Launch, serve};
