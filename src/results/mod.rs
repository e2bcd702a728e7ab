//! Records of what was measured, and everything that is made of them: the store, the study, the Pareto front, tables,
//! exports and the report.
//!
//! Nothing here measures, reads a clock or knows a device; a run directory copied to another machine reports the same.

mod key;
mod line;
pub mod record;
pub mod store;
mod wire;

#[cfg(test)]
mod fixture;

pub use record::Record;
pub use store::Store;

/// The JSON Schema of a line of `records.jsonl`, `candlepower.record/1`.
pub fn record_schema() -> serde_json::Value {
    schemars::schema_for!(wire::Record).to_value()
}
