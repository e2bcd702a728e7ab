//! Tasks against lm_eval: the requests that its own tasks make of hand-written rows, and what it computes of a tiny model's
//! answers through transformers in float32. `tests/interop/lm_eval_requests.py` made both files.

use std::fs;
use std::path::Path;

use candlepower::engine::{DeviceWeights, Engine};
use candlepower::kernels::Device;
use candlepower::model::{Model, ModelSpec, WeightsChoice};
use candlepower::quality::tasks::{Answer, Documents, Encoder, Sample, Suite, Task, Work};
use candlepower::scheme::DType;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const TASKS: [&str; 11] = [
    "arc_challenge",
    "arc_easy",
    "gsm8k",
    "hellaswag",
    "lambada_openai",
    "mmlu_high_school_physics",
    "openbookqa",
    "piqa",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "winogrande",
];

fn read(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm_eval");
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

/// The task of that name in the binary, over the hand-written rows; `more` are keys of its definition.
fn task(folder: &TempDir, rows: &Value, name: &str, more: &Value) -> Task {
    let mut files = Map::new();
    for (split, rows) in rows[name].as_object().unwrap() {
        let path = folder.path().join(format!("{name}-{split}.jsonl"));
        let lines = rows.as_array().unwrap().iter();
        fs::write(
            &path,
            lines.map(|row| format!("{row}\n")).collect::<String>(),
        )
        .unwrap();
        files.insert(split.clone(), json!(path));
    }
    let mut definition = json!({
        "include": format!("{name}.yaml"), "dataset_path": "json", "dataset_name": null,
        "dataset_kwargs": {"data_files": files},
    });
    let definition = definition.as_object_mut().unwrap();
    definition.extend(more.as_object().unwrap().clone());
    // JSON is YAML.
    let path = folder.path().join(format!("local-{name}.yaml"));
    fs::write(&path, Value::Object(definition.clone()).to_string()).unwrap();
    let mut suite = Suite::find(&[path.display().to_string()]).unwrap();
    suite.tasks.remove(0)
}

#[test]
fn requests_are_those_of_lm_eval() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, expected) = (read("rows.json"), read("requests.json"));
    for name in TASKS {
        let task = task(&folder, &rows, name, &json!({}));
        for shots in [0, 2] {
            let shots = task.shots(Some(shots));
            let found = Documents::prepare(&task, shots, None).unwrap();
            let found: Vec<Vec<[&str; 2]>> = found
                .documents
                .iter()
                .map(|document| {
                    let requests = document.requests.iter();
                    requests
                        .map(|r| [&*r.context, r.continuation.as_str()])
                        .collect()
                })
                .collect();
            assert_eq!(
                json!(found),
                expected[name][shots.to_string()],
                "{name}, {shots} examples"
            );
        }
    }
}

/// A model that says nonsense, and whose context is short enough for long requests to lose their beginning.
struct Tiny {
    model: Model,
    weights: Option<DeviceWeights>,
}

impl Tiny {
    fn open() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama/bf16");
        let spec = ModelSpec {
            source: source.display().to_string(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        };
        let model = Model::open(&spec).unwrap();
        let variant = "f32".parse().unwrap();
        let weights =
            DeviceWeights::load(&model, &variant, DType::F32, &Device::Cpu, &mut |_, _| {
                Ok(())
            })
            .unwrap();
        Self {
            model,
            weights: Some(weights),
        }
    }

    /// The documents of a task, scored in chunks of a length that cuts requests.
    fn score(&mut self, task: &Task, shots: usize) -> (Vec<Sample>, usize) {
        let tokenizer = self.model.tokenizer.as_ref().unwrap();
        let encoder = Encoder::new(tokenizer, None, self.model.config.max_positions).unwrap();
        let mut work = Work::prepare(task, Some(shots), None, &encoder).unwrap();
        let mut engine =
            Engine::new(Device::Cpu, self.weights.take().unwrap(), work.limits(96)).unwrap();
        work.run(&mut engine, tokenizer, |_, _, _| Ok(())).unwrap();
        self.weights = Some(engine.into_weights());
        let suite = Suite {
            tasks: vec![task.clone()],
            groups: Vec::new(),
        };
        let mut score = Work::finish(&suite, &[work]).unwrap();
        let task = score.tasks.remove(0);
        (task.samples, task.truncated)
    }
}

#[test]
fn scores_are_those_of_lm_eval() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, expected) = (read("rows.json"), read("scores.json"));
    let mut tiny = Tiny::open();
    let mut truncated = 0;
    for name in TASKS {
        let more = match name {
            "gsm8k" => {
                json!({"generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "max_gen_toks": 24}})
            }
            _ => json!({}),
        };
        let task = task(&folder, &rows, name, &more);
        for shots in [0, 2] {
            let (samples, cut) = tiny.score(&task, shots);
            truncated += cut;
            let expected = expected[name][shots.to_string()].as_array().unwrap();
            assert_eq!(samples.len(), expected.len());
            for (sample, expected) in samples.iter().zip(expected) {
                let place = format!("{name}, {shots} examples, document {}", sample.document);
                match &sample.answer {
                    Answer::Text(text) => assert_eq!(expected["text"], json!(text), "{place}"),
                    Answer::LogLikelihoods(found) => {
                        let sums = expected["loglikelihood"].as_array().unwrap();
                        assert_eq!(found.len(), sums.len(), "{place}");
                        for (found, sum) in found.iter().zip(sums) {
                            let off = (found.sum - sum.as_f64().unwrap()).abs();
                            assert!(off < 1e-3, "{place}: {} instead of {sum}", found.sum);
                        }
                        let greedy: Vec<bool> = found.iter().map(|l| l.greedy).collect();
                        assert_eq!(expected["is_greedy"], json!(greedy), "{place}");
                    }
                }
                for (metric, value) in &sample.values {
                    let expected = expected[metric].as_f64().unwrap_or(f64::NAN);
                    assert!(
                        (value - expected).abs() < 1e-3,
                        "{place}: {metric} {value}, not {expected}"
                    );
                }
            }
        }
    }
    assert!(truncated > 0, "no request was too long for the model");
}

#[test]
fn scores_do_not_depend_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let rows = read("rows.json");
    let task = task(&folder, &rows, "arc_easy", &json!({}));
    let mut tiny = Tiny::open();
    let (together, _) = tiny.score(&task, 0);
    for (id, row) in rows["arc_easy"]["test"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let alone = json!({"arc_easy": {"test": [row], "train": [row]}});
        let task = self::task(
            &folder,
            &alone,
            "arc_easy",
            &json!({"validation_split": null}),
        );
        let (alone, _) = tiny.score(&task, 0);
        assert_eq!(alone[0].answer, together[id].answer, "document {id}");
    }
}
