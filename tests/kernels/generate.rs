//! Tokens that feed themselves: the steps of a batch asked for ahead, and when each was seen.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candlepower::engine::{Arrivals, DeviceWeights, Engine, Limits, Prompt};
use candlepower::error::Error;
use candlepower::kernels::advance::{Advance, Feed};
use candlepower::kernels::{BufType, Device};
use candlepower::measure::clock::SystemClock;
use candlepower::scheme::DType;

use super::engine::tiny;
use super::{devices, put_ids, some_gpus};

/// More steps than the mailbox has lines, so that lines are used again.
const STEPS: usize = 6;
const AHEAD: usize = 4;

fn engine(device: &Device, variant: &str, act: DType, slots: usize) -> Engine {
    let variant = variant.parse().unwrap();
    let weights = DeviceWeights::load(&tiny(), &variant, act, device, &mut |_, _| Ok(())).unwrap();
    let mut engine = Engine::new(device.clone(), weights, Limits::new(slots, 64, 9)).unwrap();
    engine.set_ahead(AHEAD).unwrap();
    engine
}

fn prompts(tokens: &[u32]) -> [Prompt<'_>; 3] {
    let prompt = |slot, tokens| Prompt {
        slot,
        start: 0,
        tokens,
    };
    // Of different lengths, cut by the chunks in different places, and not in the order of their slots.
    [
        prompt(2, &tokens[..11]),
        prompt(0, &tokens[11..12]),
        prompt(1, &tokens[12..19]),
    ]
}

fn tokens() -> Vec<u32> {
    (0..19).map(|i| (i * 389 + 17) % 2048).collect()
}

/// The same, each token handed over by the host.
fn step_by_step(engine: &mut Engine, steps: usize) -> Vec<u32> {
    let tokens = tokens();
    let prompts = prompts(&tokens);
    let mut next = engine.prefill(&prompts).unwrap();
    let mut all = next.clone();
    for step in 1..steps {
        let continued: Vec<Prompt<'_>> = prompts
            .iter()
            .zip(next.chunks(1))
            .map(|(prompt, tokens)| Prompt {
                start: prompt.tokens.len() + step - 1,
                tokens,
                ..*prompt
            })
            .collect();
        next = engine.prefill(&continued).unwrap();
        all.extend(&next);
    }
    all
}

fn assert_complete(arrivals: &Arrivals, rows: usize, steps: usize) {
    assert_eq!(arrivals.tokens.len(), rows * steps);
    assert_eq!(arrivals.at.len(), steps);
    assert!(arrivals.start <= arrivals.at[0]);
    assert!(arrivals.at.windows(2).all(|pair| pair[0] <= pair[1]));
}

#[test]
fn tokens_that_feed_themselves_equal_those_handed_over() {
    for device in iter::once(Device::Cpu).chain(some_gpus(&[77])) {
        for (variant, act) in [("w4a16", DType::BF16), ("w8a8", DType::F32)] {
            let mut engine = engine(&device, variant, act, 3);
            let truth = step_by_step(&mut engine, STEPS);
            for replays in [false, true] {
                engine.set_replays(replays);
                let tokens = tokens();
                let arrivals = engine
                    .generate(&prompts(&tokens), STEPS, &SystemClock::new(), &mut |_| true)
                    .unwrap();
                assert_complete(&arrivals, 3, STEPS);
                let what = format!("{variant} on {}, replays {replays}", device.kind());
                assert_eq!(arrivals.tokens, truth, "{what}");
                let clocked = matches!(device, Device::Gpu(_));
                assert_eq!(arrivals.device.is_some(), clocked, "{what}");
            }
        }
    }
}

#[test]
fn a_batch_ends_where_it_is_told_to_and_the_next_one_is_whole() {
    for device in iter::once(Device::Cpu).chain(some_gpus(&[0])) {
        let mut engine = engine(&device, "bf16", DType::F32, 3);
        let (clock, tokens) = (SystemClock::new(), tokens());
        let truth = step_by_step(&mut engine, STEPS);
        let mut seen: Vec<u32> = Vec::new();
        let arrivals = engine
            .generate(&prompts(&tokens), 37, &clock, &mut |step| {
                seen.extend(step);
                seen.len() < 12
            })
            .unwrap();
        assert_complete(&arrivals, 3, 4);
        assert_eq!(arrivals.tokens, truth[..12]);
        assert_eq!(arrivals.device, None);
        assert_eq!(seen, arrivals.tokens);
        // Another width of lines, and other numbers of steps than before.
        let one = &prompts(&tokens)[..1];
        let alone = engine.generate(one, STEPS, &clock, &mut |_| true).unwrap();
        let row: Vec<u32> = truth.iter().copied().step_by(3).collect();
        assert_eq!(alone.tokens, row);
        let first = engine
            .generate(one, 1, &clock, &mut |_| unreachable!("the last"))
            .unwrap();
        assert_complete(&first, 1, 1);

        let flag = Arc::new(AtomicBool::new(true));
        engine.stop_when(flag);
        let stopped = engine.generate(one, 6, &clock, &mut |_| true);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let mut engine = engine(&Device::Cpu, "bf16", DType::F32, 3);
    let (clock, tokens) = (SystemClock::new(), tokens());
    let fits = prompts(&tokens);
    let mut refused = |prompts: &[Prompt<'_>], steps| {
        let error = engine.generate(prompts, steps, &clock, &mut |_| true);
        assert!(matches!(error, Err(Error::Internal(_))), "{error:?}");
    };
    refused(&fits, 0);
    refused(&[], 3);
    // 11 + 54 - 1 are 64 positions.
    refused(&fits, 55);
    refused(
        &[Prompt {
            tokens: &[],
            ..fits[0]
        }],
        3,
    );
}

#[test]
fn a_step_is_closed_alike_everywhere() {
    for device in devices() {
        // Two lines of five words: the third step is in the first line again. Rows come in two parts.
        let mailbox = device.mailbox(10).unwrap();
        let (mut next, mut positions) = (put_ids(&device, &[9; 6]), put_ids(&device, &[40; 6]));
        let mut steps = device.alloc(BufType::U32, 1).unwrap();
        device.upload(&mut steps, 0, &[6_u32]).unwrap();
        let picked = put_ids(&device, &[100, 101, u32::MAX, 0]);
        for (first, rows, ends) in [(0, 3, false), (3, 2, true), (0, 3, false)] {
            let op = Advance {
                first,
                rows,
                width: 5,
                ends,
            };
            let feed = Feed {
                tokens: &mut next,
                positions: &mut positions,
                steps: &mut steps,
            };
            op.run(&device, &picked, feed, &mailbox).unwrap();
        }
        device.synchronize().unwrap();
        let what = device.kind();
        assert_eq!(
            device.download::<u32>(&next, 0..6).unwrap(),
            [100, 101, u32::MAX, 100, 101, 9],
            "{what}"
        );
        assert_eq!(
            device.download::<u32>(&positions, 0..6).unwrap(),
            [42, 42, 42, 41, 41, 40],
            "{what}"
        );
        assert_eq!(device.download::<u32>(&steps, 0..1).unwrap(), [7], "{what}");
        let told = |step, words: std::ops::Range<usize>| -> Vec<Option<u32>> {
            words.map(|word| mailbox.token(word, step)).collect()
        };
        let tokens = [100, 101, u32::MAX, 100, 101].map(Some);
        assert_eq!(told(6, 0..5), tokens, "{what}");
        assert_eq!(told(7, 5..8), tokens[..3], "{what}");
        // Step 7 is not over, and nothing is of another step.
        assert_eq!(told(7, 8..10), [None; 2], "{what}");
        assert_eq!(told(8, 0..5), [None; 5], "{what}");
    }
}
