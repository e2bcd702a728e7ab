//! candlepower (map to come)


pub mod cli;
pub mod engine;
pub mod error;
pub mod kernels;
pub mod measure;
pub mod model;
pub mod quality;
pub mod results;
pub mod stats;
pub mod study;
pub mod scheme;
pub mod units;
