//! The forward pass of every family on one device: weights, cache, steps, and what is read off their logits. Does not
//! know that it is timed, nor which text it reads.
//!
//! Reading order: [`Limits`] and [`Footprint`] (`limits`: what will be allocated, before it is) · [`WeightSource`]
//! (`source`: what weights are made from) · [`DeviceWeights`] (`weights`, filled by `load`) · [`StepPlan`] (`step_plan`:
//! which launches are one) · `scratch` (what a step writes) · `transformer` (one step) · [`StepWork`] (`step_cost`: what it
//! must move and compute) · `replay` (a step recorded once) · [`Engine`] (`session`: prefill, decode, scoring) ·
//! [`Arrivals`] (`generate`: steps asked for ahead, tokens watched as they come) · [`Sampler`] · [`CandleEngine`]
//! (`candle`: candle-transformers' own models, the baseline).

mod candle;
mod generate;
mod limits;
mod load;
mod replay;
mod sampler;
mod scratch;
mod session;
mod source;
mod step_cost;
mod step_plan;
mod transformer;
mod weights;

pub use candle::{CandleEngine, CandleModel};
pub use generate::{Arrivals, DeviceTime};
pub use limits::{Footprint, Limits};
pub use sampler::{Sampler, Sampling};
pub use session::{Continuation, Engine, LogitsReader, Predicted, Prediction, Prompt, Targets};
pub use source::WeightSource;
pub use step_cost::StepWork;
pub use step_plan::StepPlan;
pub use weights::DeviceWeights;
