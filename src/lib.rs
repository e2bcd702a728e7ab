//! candlepower (map to come)

pub mod error;
pub mod scheme;
pub mod units;
