//! How far a speed-up over the base is to be believed, and which variants took turns.

use super::record::{Cell, Speed, Trial};
use crate::stats::contrast::{Contrast, Series};
use crate::stats::{Interval, Ratio, paired_rates};

/// What a rate is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Prompt tokens over the time of prefill.
    Prefill,
    /// Generated tokens, the first of each row aside, over the time of decode.
    Decode,
}

/// Whether two variants took turns in a cell: both have two blocks at least, none runs while one of the other does, and the
/// next of either begins after both have had theirs. One of them may need fewer. One that was measured again later, alone
/// or in another run whose clock began anew, has blocks that lie together or over those of the other.
pub(super) fn took_turns(one: &Speed, other: &Speed) -> bool {
    let (one, other) = (spans(one), spans(other));
    let apart = |a: &Span, b: &Span| a.end <= b.begin || b.end <= a.begin;
    let rounds: Vec<(&Span, &Span)> = one.iter().zip(&other).collect();
    let after = |round: usize| {
        let mut next = [one.get(round), other.get(round)].into_iter().flatten();
        let (a, b) = rounds[round - 1];
        next.all(|span| a.end.max(b.end) <= span.begin)
    };
    rounds.len() > 1 && rounds.iter().all(|(a, b)| apart(a, b)) && (1..=rounds.len()).all(after)
}

/// When a block was measured, in seconds from the beginning of its run.
struct Span {
    begin: f64,
    /// At least: what was thrown away after it began took time as well.
    end: f64,
}

fn spans(speed: &Speed) -> Vec<Span> {
    let spans = in_blocks(speed).into_iter().zip(&speed.blocks);
    spans
        .map(|(trials, block)| {
            let taken: f64 = trials.iter().map(|trial| trial.e2e.0).sum();
            Span {
                begin: block.begin.0,
                end: block.begin.0 + taken,
            }
        })
        .collect()
}

/// The trials of each block.
fn in_blocks(speed: &Speed) -> Vec<&[Trial]> {
    let mut rest = speed.trials.as_slice();
    let blocks = speed.blocks.iter().map(|block| {
        let (own, others) = rest.split_at(block.trials.min(rest.len()));
        rest = others;
        own
    });
    blocks.collect()
}

/// The 95 % interval of the rate of `own` over that of `base` in the same cell. Where they took as many turns, turns are
/// the pairs; else trials are drawn on each side, and what a run wandered from quarter to quarter is in it. `None` where
/// there is nothing to tell a spread from.
pub(super) fn interval(cell: Cell, phase: Phase, base: &Speed, own: &Speed) -> Option<Interval> {
    if base.blocks.len() == own.blocks.len() && took_turns(base, own) {
        let turns = |speed: &Speed| -> Vec<Ratio> {
            let blocks = in_blocks(speed).into_iter();
            blocks.map(|trials| together(cell, phase, trials)).collect()
        };
        // A turn all of whose trials were left out, since the device was slowed, pairs with nothing.
        let pairs = turns(base).into_iter().zip(turns(own));
        let (base, own): (Vec<Ratio>, Vec<Ratio>) = pairs
            .filter(|(base, own)| base.whole > 0.0 && own.whole > 0.0)
            .unzip();
        return paired_rates(&base, &own);
    }
    let series = |speed: &Speed| {
        let trials = speed.trials.chunks(1);
        let each = trials.map(|trial| together(cell, phase, trial));
        Series::Ratios(each.filter(|ratio| ratio.part > 0.0).collect())
    };
    // As with every interval of a study, what differs from run to run is not in it.
    let contrast = Contrast::of(&[series(base)], &[series(own)], Some(0.0))?;
    contrast.interval().map(|logs| logs.map(f64::exp))
}

/// The tokens of some trials and the time that they took.
fn together(cell: Cell, phase: Phase, trials: &[Trial]) -> Ratio {
    let of = |trial: &Trial| match phase {
        Phase::Prefill => (cell.prompt, trial.prefill),
        Phase::Decode => (trial.itl.len(), trial.decode),
    };
    let (tokens, seconds) = trials.iter().map(of).fold((0, 0.0), |sum, (tokens, time)| {
        (sum.0 + tokens, sum.1 + time.0)
    });
    Ratio {
        part: (cell.batch * tokens) as f64,
        whole: seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::record::Block;
    use super::*;
    use crate::units::Seconds;

    const CELL: Cell = Cell {
        batch: 2,
        prompt: 8,
        generate: 5,
        depth: 0,
    };

    /// Blocks of two trials that begin then; a trial takes so many seconds, a fifth of it prefill, times the drift of its
    /// block.
    fn measured(begins: &[f64], seconds: f64, drift: &[f64]) -> Speed {
        let trial = |drift: f64| Trial {
            prefill: Seconds(0.2 * seconds * drift),
            decode: Seconds(0.8 * seconds * drift),
            e2e: Seconds(seconds * drift),
            itl: vec![Seconds(0.2 * seconds * drift); 4],
            ..Trial::default()
        };
        let block = |&begin: &f64| Block {
            begin: Seconds(begin),
            trials: 2,
        };
        Speed {
            trials: drift.iter().flat_map(|&d| [trial(d), trial(d)]).collect(),
            blocks: begins.iter().map(block).collect(),
            ..fixture::speed(&fixture::usual()[0], CELL)
        }
    }

    #[test]
    fn turns_are_told_by_when_they_were_taken() {
        let even = [1.0; 3];
        let base = measured(&[0.0, 8.0, 10.0], 1.0, &even);
        // Forward, backward, backward, as the study has it.
        let other = measured(&[2.0, 5.0, 13.0], 1.0, &even);
        assert!(took_turns(&base, &other) && took_turns(&other, &base));
        // Measured again after the others, in the same run and in one whose clock began anew.
        assert!(!took_turns(
            &base,
            &measured(&[20.0, 22.0, 24.0], 1.0, &even)
        ));
        assert!(!took_turns(&base, &measured(&[0.5, 2.5, 4.5], 1.0, &even)));
        // One that needs fewer had its turns all the same.
        assert!(took_turns(&base, &measured(&[2.0, 5.0], 1.0, &[1.0; 2])));
        assert!(!took_turns(&base, &measured(&[2.0, 11.0], 1.0, &[1.0; 2])));
        // Of one block, or none, nothing can be told.
        let single = |begin| measured(&[begin], 1.0, &[1.0]);
        assert!(!took_turns(&single(0.0), &single(2.0)));
        assert!(!took_turns(
            &measured(&[], 1.0, &even),
            &measured(&[], 1.0, &even)
        ));
    }

    #[test]
    fn a_ratio_is_paired_by_turn_where_turns_were_taken() {
        let drift = [1.0, 1.3, 0.8];
        let base = measured(&[0.0, 10.0, 20.0], 1.0, &drift);
        let half = |begins: &[f64]| measured(begins, 0.5, &drift);
        for phase in [Phase::Prefill, Phase::Decode] {
            let paired = interval(CELL, phase, &base, &half(&[4.0, 14.0, 24.0])).unwrap();
            assert!((paired.low - 2.0).abs() < 1e-9, "{paired:?}");
            assert!((paired.high - 2.0).abs() < 1e-9, "{paired:?}");
            let apart = interval(CELL, phase, &base, &half(&[40.0, 41.5, 43.5])).unwrap();
            assert!(apart.low < 1.9 && 2.1 < apart.high, "{apart:?}");
        }
    }

    #[test]
    fn what_has_no_spread_has_no_interval() {
        let single = measured(&[], 1.0, &[]);
        assert_eq!(interval(CELL, Phase::Decode, &single, &single), None);
        let mut undecoded = measured(&[], 1.0, &[1.0, 1.1]);
        undecoded.trials.iter_mut().for_each(|t| t.itl.clear());
        assert_eq!(interval(CELL, Phase::Decode, &undecoded, &undecoded), None);
        assert!(interval(CELL, Phase::Prefill, &undecoded, &undecoded).is_some());
    }

    #[test]
    fn a_turn_without_a_counted_trial_pairs_with_nothing() {
        let base = measured(&[0.0, 10.0, 20.0], 1.0, &[1.0; 3]);
        let mut own = measured(&[4.0, 14.0, 24.0], 0.5, &[1.0; 3]);
        own.trials.truncate(4);
        own.blocks[2].trials = 0;
        let ends = interval(CELL, Phase::Decode, &base, &own).unwrap();
        assert!((ends.low - 2.0).abs() < 1e-9 && (ends.high - 2.0).abs() < 1e-9);
    }
}
