//! Records of what was measured, and everything that is made of them: the store, the study, the Pareto front, tables,
//! exports and the report.
//!
//! In reading order: [`record`] is what was measured, `wire` and `line` how it is written down, `key` how it is found
//! again, [`store`] where it is kept; [`study`] is the document made of records, by `assemble` with the help of
//! `quality`, [`tasks`] (by [`recovery`]), `timing`, `speedup`, [`pareto`] and [`goal`], and [`latest`] makes it anew;
//! `view` answers what [`table`], [`export`], [`card`] and [`report`] ask it. [`compare`] sets runs against each other;
//! [`microbench`] is the same for single ops; [`scored_text`], [`recovered`], [`info`], [`capacity`] and [`power`] are what
//! commands outside a study print.
//!
//! Nothing here measures, reads a clock or knows a device; a run directory copied to another machine reports the same.

mod assemble;
pub mod capacity;
pub mod card;
mod charts;
mod columns;
pub mod compare;
pub mod environment;
pub mod export;
mod format;
pub mod goal;
pub mod info;
mod key;
pub mod latest;
mod line;
pub mod manifest;
pub mod microbench;
mod names;
pub mod pareto;
pub mod power;
mod quality;
pub mod record;
pub mod recovered;
pub mod recovery;
mod remarks;
pub mod report;
pub mod roofline;
pub mod scored_text;
mod speedup;
pub mod store;
pub mod study;
pub mod table;
pub mod tasks;
mod timing;
mod trials;
mod verdict;
mod view;
mod waterfall;
mod wire;

#[cfg(test)]
mod fixture;

pub use columns::tabulated;
pub use environment::Environment;
pub use manifest::Manifest;
pub use quality::{compare as compare_quality, perplexity};
pub use record::Record;
pub use store::Store;
pub use study::Study;
pub use view::Quality;
pub use waterfall::waterfall;

use serde_json::{Value, json};

/// The JSON Schema of a line of `records.jsonl`, `candlepower.record/1`.
pub fn record_schema() -> Value {
    schemars::schema_for!(wire::Record).to_value()
}

/// The JSON Schema of `study.json`, `candlepower.study/1`.
pub fn study_schema() -> Value {
    schemars::schema_for!(Study).to_value()
}

/// The JSON Schema of `manifest.json`, `candlepower.manifest/1`.
pub fn manifest_schema() -> Value {
    schemars::schema_for!(Manifest).to_value()
}

/// The JSON Schema of a line that the microbenchmark writes, `candlepower.kernel/1`.
pub fn kernel_record_schema() -> Value {
    schemars::schema_for!(microbench::Record).to_value()
}

/// The JSON Schema of a whole run of the microbenchmark, `candlepower.kernels/1`.
pub fn microbench_schema() -> Value {
    schemars::schema_for!(microbench::Microbench).to_value()
}

/// The JSON Schema of what compares two runs, `candlepower.comparison/1`.
pub fn comparison_schema() -> Value {
    schemars::schema_for!(compare::Comparison).to_value()
}

/// The JSON Schema of what compares many, `candlepower.history/1`.
pub fn history_schema() -> Value {
    schemars::schema_for!(compare::History).to_value()
}

/// The JSON Schema of a text scored outside a study, `candlepower.perplexity/1`.
pub fn scored_text_schema() -> Value {
    schemars::schema_for!(scored_text::ScoredText).to_value()
}

/// The JSON Schema of the device and the machine around it, `candlepower.info/1`.
pub fn info_schema() -> Value {
    schemars::schema_for!(info::Info).to_value()
}

/// The JSON Schema of what of a model fits, `candlepower.capacity/1`.
pub fn capacity_schema() -> Value {
    schemars::schema_for!(capacity::Capacity).to_value()
}

/// The JSON Schema of what power sensors are worth, `candlepower.power/1`.
pub fn power_schema() -> Value {
    schemars::schema_for!(power::PowerCard).to_value()
}

/// Every schema of this module, by the name of what it describes.
pub fn schemas() -> Value {
    json!({
        "candlepower.record/1": record_schema(),
        "candlepower.study/1": study_schema(),
        "candlepower.comparison/1": comparison_schema(),
        "candlepower.history/1": history_schema(),
        "candlepower.manifest/1": manifest_schema(),
        "candlepower.kernel/1": kernel_record_schema(),
        "candlepower.kernels/1": microbench_schema(),
        "candlepower.perplexity/1": scored_text_schema(),
        "candlepower.info/1": info_schema(),
        "candlepower.capacity/1": capacity_schema(),
        "candlepower.power/1": power_schema(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_and_study_satisfies_its_schema() {
        let validator = jsonschema::validator_for(&record_schema()).unwrap();
        for record in fixture::records()
            .into_iter()
            .chain(fixture::task_records())
        {
            let value: Value = serde_json::from_str(&line::encode(&record).unwrap()).unwrap();
            validator
                .validate(&value)
                .unwrap_or_else(|error| panic!("{error}\n{value}"));
        }
        let validator = jsonschema::validator_for(&study_schema()).unwrap();
        for study in [
            fixture::study(),
            fixture::small_study(),
            fixture::task_study(),
        ] {
            let value = serde_json::to_value(&study).unwrap();
            validator
                .validate(&value)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(serde_json::from_value::<Study>(value).unwrap(), study);
        }
    }

    #[test]
    fn a_schema_refuses_what_is_not_of_its_kind() {
        let validator = jsonschema::validator_for(&record_schema()).unwrap();
        let mut value: Value =
            serde_json::from_str(&line::encode(&fixture::records().swap_remove(0)).unwrap())
                .unwrap();
        value["schema"] = "candlepower.record/2".into();
        assert!(!validator.is_valid(&value));
        assert_eq!(schemas().as_object().unwrap().len(), 11);
    }
}
