//! What each part of the engine is worth: the same cells with ever more of the parts.

use super::plan::{EngineKind, Plan, Switches};
use crate::kernels::Device;
use crate::scheme::{KvFormat, WeightScheme};

/// The same work by ever more of the engine: candle's models where they can run it, ours with all that may be switched off
/// switched off, then with one part more each time, up to the whole.
pub fn stages(plan: &Plan, device: &Device) -> Vec<Plan> {
    let mut stages = Vec::new();
    let plain: Vec<_> = plan
        .variants
        .iter()
        .filter(|variant| matches!(variant.weights, WeightScheme::Plain(_)))
        .cloned()
        .collect();
    if !plain.is_empty() && device.kind() != "emulator" {
        stages.push(Plan {
            engine: EngineKind::Candle,
            variants: plain,
            // The only one that candle has; and it takes prompts whole.
            kv: vec![KvFormat::Auto],
            chunk: None,
            switches: Switches::default(),
            ..plan.clone()
        });
    }
    let ladder = match device {
        Device::Cpu => vec![Switches::default()],
        Device::Gpu(_) => Switches::ladder(),
    };
    stages.extend(ladder.into_iter().map(|switches| Plan {
        engine: EngineKind::Candlepower,
        switches,
        ..plan.clone()
    }));
    if matches!(device, Device::Gpu(_)) {
        stages.extend(in_one_launch(plan));
    }
    stages
}

/// What of it may be decoded in one launch for each token; whether it can be is known when a model is there.
fn in_one_launch(plan: &Plan) -> Option<Plan> {
    let one = Plan {
        engine: EngineKind::Candlepower,
        switches: Switches {
            persistent: Some(true),
            ..Switches::default()
        },
        kv: plan
            .kv
            .iter()
            .copied()
            .filter(|&kv| kv == KvFormat::Auto)
            .collect(),
        cells: plan
            .cells
            .iter()
            .filter(|cell| cell.batch == 1)
            .cloned()
            .collect(),
        ..plan.clone()
    };
    let something = !(one.kv.is_empty() || one.cells.is_empty());
    something.then_some(one)
}
