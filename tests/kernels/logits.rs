//! What is read off logits.

use candlepower::kernels::sample::{Argmax, LogProb, NO_TOKEN};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::DType;

use super::{Noise, TYPES, devices, get, gpus, put, put_ids};

fn argmax(device: &Device, logits: &[f32], rows: usize, act: DType) -> Vec<u32> {
    let vocab = logits.len() / rows;
    let mut out = device.alloc(BufType::U32, rows).unwrap();
    Argmax { rows, vocab }
        .run(device, &put(device, logits, act), &mut out)
        .unwrap();
    device.download(&out, 0..rows).unwrap()
}

#[test]
fn the_first_largest_logit_wins_wherever_it_stands() {
    devices().iter().for_each(the_first_wins);
}

pub(super) fn the_first_wins(device: &Device) {
    for act in TYPES {
        for vocab in [1, 2, 31, 33, 1000, 1025, 5003] {
            let mut noise = Noise(vocab as u64);
            let places = [0, vocab / 2, vocab - 1];
            let rows = places.map(|at| {
                let mut row = noise.numbers(vocab, act);
                row[at] = 2.0;
                // A second one of the same size behind it.
                let again = (at + 32).min(vocab - 1);
                row[again] = 2.0;
                row
            });
            let found = argmax(device, &rows.concat(), 3, act);
            let truth = places.map(|at| u32::try_from(at).unwrap());
            assert_eq!(found, truth, "{vocab}, {act}, {}", device.kind());
        }
    }
}

#[test]
fn nan_never_wins() {
    for device in devices() {
        for act in TYPES {
            let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
            let rows = [[nan, -1.0, nan], [nan; 3], [low, nan, low]].concat();
            let found = argmax(&device, &rows, 3, act);
            assert_eq!(found, [1, NO_TOKEN, 0], "{act}, {}", device.kind());
        }
    }
}

fn log_prob(device: &Device, logits: &[f32], targets: &[u32], act: DType) -> Vec<f32> {
    let rows = targets.len();
    let vocab = logits.len() / rows;
    let mut out = device.alloc(BufType::Float(DType::F32), rows).unwrap();
    LogProb { rows, vocab }
        .run(
            device,
            &put(device, logits, act),
            &put_ids(device, targets),
            &mut out,
        )
        .unwrap();
    get(device, &out)
}

#[test]
fn log_probabilities_equal_those_in_f64() {
    for device in devices() {
        for act in TYPES {
            for vocab in [1, 2, 33, 1000, 5003] {
                let mut noise = Noise(3);
                // Far from zero, where a sum without its maximum would overflow.
                let logits: Vec<f32> = (0..2 * vocab)
                    .map(|_| act.round(noise.number() * 12.0 + 100.0))
                    .collect();
                let targets = [0, vocab - 1];
                let ids = targets.map(|target| u32::try_from(target).unwrap());
                let found = log_prob(&device, &logits, &ids, act);
                for (row, target) in targets.into_iter().enumerate() {
                    let row_logits = &logits[row * vocab..][..vocab];
                    let shifted = row_logits.iter().map(|&x| (f64::from(x) - 100.0).exp());
                    let truth = f64::from(row_logits[target]) - 100.0 - shifted.sum::<f64>().ln();
                    let error = (f64::from(found[row]) - truth).abs();
                    assert!(
                        error <= 2e-6 + 2.0_f64.powi(-23) * truth.abs(),
                        "{vocab}, {act}, {}: {} instead of {truth}",
                        device.kind(),
                        found[row]
                    );
                }
            }
        }
    }
}

#[test]
fn a_broken_logit_or_target_gives_nan() {
    for device in devices() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![0.5; 3 * 40];
            logits[77] = bad;
            let found = log_prob(&device, &logits, &[39, 39, 39], DType::F32);
            let broken = found.iter().map(|x| x.is_nan());
            assert!(broken.eq([false, true, false]), "{found:?}");
        }
    }
    for device in gpus() {
        let found = log_prob(&device, &[0.5; 80], &[40, 39], DType::F32);
        assert!(found[0].is_nan() && !found[1].is_nan(), "{found:?}");
    }
}
