//! candlepower (map to come)

pub mod error;
pub mod kernels;
pub mod scheme;
pub mod units;
