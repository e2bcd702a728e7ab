//! The cost of a step against the ops that it consists of, written down one by one.

use super::*;
use crate::model::{Model, ModelSpec, WeightsChoice};

const ACT: DType = DType::F32;

/// A model in every way that inputs come to products.
const MODELS: [(&str, &str); 8] = [
    ("tiny", "f32"),
    ("tiny", "bf16"),
    ("tiny", "int8"),
    ("tiny", "w8a8"),
    ("tiny", "w4a16"),
    ("ct-w4a16-g32-asym", "as-is"),
    ("ct-w8a8-dyn-int", "as-is"),
    ("ct-fp8-dyn-float", "as-is"),
];

fn load(source: &str, variant: &str) -> DeviceWeights {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-llama/");
    let source = match source {
        "tiny" => source.to_owned(),
        kind => format!("{fixtures}{kind}"),
    };
    let model = Model::open(&ModelSpec {
        source,
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    })
    .unwrap();
    let variant = variant.parse().unwrap();
    DeviceWeights::load(&model, &variant, ACT, &Device::Cpu, &mut |_, _| Ok(())).unwrap()
}

const CODES: StepPlan = StepPlan {
    codes: true,
    ..StepPlan::UNFUSED
};

/// As plans are made: what is rounded to numbers is never fused, and without codes there is nothing to fuse with the
/// products that no norm comes before.
fn fused(input: InputPath) -> StepPlan {
    let head = 8;
    match input {
        InputPath::Rounded(_) => StepPlan {
            head,
            ..StepPlan::UNFUSED
        },
        InputPath::Float => StepPlan {
            qkv: 8,
            gate_up: 8,
            head,
            ..StepPlan::UNFUSED
        },
        InputPath::Codes => StepPlan {
            qkv: 8,
            output: 8,
            gate_up: 8,
            down: 8,
            head,
            codes: true,
            ..StepPlan::UNFUSED
        },
    }
}

fn step(tokens: usize, logits: usize, picks: bool) -> StepWork {
    StepWork {
        tokens,
        queries: Queries::Single,
        seen: 100.0 * tokens as f64,
        cached: 90.0 * tokens as f64,
        logits,
        picks,
    }
}

/// What the ops cost of which a step consists.
struct Ops<'a> {
    weights: &'a DeviceWeights,
    work: StepWork,
    kv: KvFormat,
}

impl Ops<'_> {
    fn norm(&self, rows: usize) -> RmsNorm {
        RmsNorm {
            rows,
            width: self.weights.config.hidden,
            eps: 0.0,
        }
    }

    fn linear(&self, projection: &Projection, accumulate: bool) -> Cost {
        let tokens = self.work.tokens;
        let codes = projection.input == InputPath::Codes;
        let input = if codes { None } else { Some(ACT) };
        Linear { tokens, accumulate }.cost(&projection.weight, input, ACT)
    }

    fn rounded(&self, projection: &Projection) -> Cost {
        let (tokens, width) = (self.work.tokens, projection.weight.k);
        match projection.input {
            InputPath::Float => Cost::default(),
            InputPath::Codes => QuantizeAct { tokens, width }.cost(ACT),
            InputPath::Rounded(rounding) => RoundInput {
                tokens,
                width,
                rounding,
            }
            .cost(ACT),
        }
    }

    fn one_launch(&self, projection: &Projection, normed: bool, then: Then) -> Cost {
        let op = FusedLinear {
            tokens: self.work.tokens,
            codes: projection.input == InputPath::Codes,
            then,
            accumulate: !normed,
        };
        op.cost(&projection.weight, ACT, normed, ACT)
    }

    fn silu(&self, layer: &Layer) -> SiluMul {
        SiluMul {
            rows: self.work.tokens,
            width: self.weights.config.intermediate,
            layout: layer.gate_up_layout,
        }
    }

    fn layer(&self, layer: &Layer, plan: StepPlan) -> Vec<Cost> {
        let Layer {
            qkv,
            output,
            gate_up,
            down,
            ..
        } = layer;
        let StepWork {
            tokens,
            queries,
            seen,
            cached,
            ..
        } = self.work;
        let norm = self.norm(tokens);
        let attention = attention_op(&self.weights.config, tokens, 0, queries, self.kv);
        let mut ops = vec![
            RopeAppend(attention).cost(ACT),
            attention.cost(ACT, seen, cached),
        ];
        let by_itself = |p, accumulate| [self.rounded(p), self.linear(p, accumulate)];
        let fuses = tokens <= 8 && plan.qkv > 0;
        match qkv.input {
            InputPath::Codes if fuses => ops.extend([
                self.one_launch(qkv, true, Then::Store),
                self.one_launch(output, false, Then::Store),
                self.one_launch(gate_up, true, Then::Gate),
                self.one_launch(down, false, Then::Store),
            ]),
            InputPath::Float if fuses => ops.extend([
                self.one_launch(qkv, true, Then::Store),
                self.linear(output, true),
                self.one_launch(gate_up, true, Then::Gate),
                self.linear(down, true),
            ]),
            InputPath::Codes if plan.codes => {
                ops.extend([
                    norm.cost_to_codes(ACT),
                    self.linear(qkv, false),
                    norm.cost_to_codes(ACT),
                    self.linear(gate_up, false),
                    self.silu(layer).cost_to_codes(ACT),
                    self.linear(down, true),
                ]);
                ops.extend(by_itself(output, true));
            }
            _ => {
                ops.extend([norm.cost(ACT), norm.cost(ACT), self.silu(layer).cost(ACT)]);
                ops.extend(by_itself(qkv, false));
                ops.extend(by_itself(output, true));
                ops.extend(by_itself(gate_up, false));
                ops.extend(by_itself(down, true));
            }
        }
        ops
    }

    fn head(&self, plan: StepPlan) -> Vec<Cost> {
        let StepWork { logits, picks, .. } = self.work;
        let weight = self.weights.head();
        let fused = |then| FusedLinear::new(logits, then).cost(weight, ACT, true, DType::F32);
        let argmax = Argmax {
            rows: logits,
            vocab: weight.n,
        };
        match (logits, logits <= plan.head, picks) {
            (0, ..) => vec![],
            (_, true, true) => vec![fused(Then::Pick)],
            (_, true, false) => vec![fused(Then::Store), argmax.cost(DType::F32)],
            (_, false, _) => {
                let gather = Gather {
                    count: logits,
                    rows: self.work.tokens,
                    width: weight.k,
                };
                let product = Linear {
                    tokens: logits,
                    accumulate: false,
                };
                vec![
                    gather.cost(ACT, ACT),
                    self.norm(logits).cost(ACT),
                    product.cost(weight, Some(ACT), DType::F32),
                    argmax.cost(DType::F32),
                ]
            }
        }
    }

    fn sum(&self, plan: StepPlan, table: DType) -> Cost {
        let config = &self.weights.config;
        let gather = Gather {
            count: self.work.tokens,
            rows: config.vocab,
            width: config.hidden,
        };
        let layers = self.weights.layers.iter();
        let layers = layers.flat_map(|layer| self.layer(layer, plan));
        std::iter::once(gather.cost(table, ACT))
            .chain(layers)
            .chain(self.head(plan))
            .sum()
    }
}

#[track_caller]
fn assert_same(a: Cost, b: Cost, what: &str) {
    for (a, b) in [(a.read, b.read), (a.written, b.written), (a.flops, b.flops)] {
        assert!((a - b).abs() <= 1e-12 * a.abs(), "{what}: {a} and {b}");
    }
}

#[test]
fn the_cost_of_a_step_is_the_sum_of_what_its_ops_cost() {
    for (source, variant) in MODELS {
        let weights = load(source, variant);
        let input = weights.layers[0].qkv.input;
        let WeightData::Plain(table) = &weights.embedding.data else {
            panic!("{source}: an embedding that is not plain");
        };
        let table = table.dtype().unwrap();
        for plan in [StepPlan::UNFUSED, CODES, fused(input)] {
            for work in [
                step(1, 1, true),
                step(8, 8, true),
                step(9, 9, true),
                step(40, 0, false),
                step(40, 2, false),
                step(40, 40, false),
            ] {
                for kv in KvFormat::ALL {
                    let ops = Ops {
                        weights: &weights,
                        work,
                        kv,
                    };
                    let cost = weights.step_cost(&Device::Cpu, plan, &work, kv);
                    let what = format!("{source} {variant}, {plan}, {work:?}, {kv:?}");
                    assert_same(cost, ops.sum(plan, table), &what);
                }
            }
        }
    }
}

#[test]
fn plans_differ_in_traffic_and_not_in_arithmetic() {
    for (source, variant) in MODELS {
        let weights = load(source, variant);
        let input = weights.layers[0].qkv.input;
        for work in [step(1, 1, true), step(8, 8, false), step(40, 2, false)] {
            let cost = |plan| weights.step_cost(&Device::Cpu, plan, &work, KvFormat::Auto);
            let apart = cost(StepPlan::UNFUSED);
            for plan in [CODES, fused(input)] {
                let here = cost(plan);
                let what = format!("{source} {variant}, {plan}, {work:?}");
                let most = 1e-12 * apart.flops;
                assert!((here.flops - apart.flops).abs() <= most, "{what}");
                assert!(here.bytes() <= apart.bytes(), "{what}");
                let makes_codes = input == InputPath::Codes;
                let saves = makes_codes || plan.head >= work.logits;
                assert_eq!(here.bytes() < apart.bytes(), saves, "{what}");
            }
        }
    }
}

#[test]
fn a_step_without_logits_reads_no_head() {
    let weights = load("tiny", "bf16");
    let cost = |logits| {
        let work = step(16, logits, false);
        weights.step_cost(&Device::Cpu, StepPlan::UNFUSED, &work, KvFormat::Auto)
    };
    assert!(cost(1).read - cost(0).read >= weights.head().bytes() as f64);
}
