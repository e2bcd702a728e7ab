//! From losses to perplexity, bits per byte and the paired difference to a base.

use super::record;
use super::study::{Delta, Divergence, Interval, Perplexity, Text, UnderLoad};
use crate::stats::{self, Ratio};

/// The perplexity of one record, without the comparison to a base; `None` if nothing was scored.
pub fn perplexity(task: &record::QualityTask, result: &record::Perplexity) -> Option<Perplexity> {
    let ratios = ratios(&result.segments);
    let loss = stats::rate(&ratios).filter(|loss| loss.is_finite())?;
    let loss_stderr = stats::rate_standard_error(&ratios);
    let ends = stats::rate_interval(&ratios).map(|ends| ends.map(f64::exp));
    let nll_sum: f64 = result.segments.iter().map(|segment| segment.nll).sum();
    let tokens_scored: u64 = result.segments.iter().map(|segment| segment.tokens).sum();
    // Nats per token to bits per byte: by the tokens that the scored bytes make.
    let bits = |nats: f64| {
        let bytes = result.bytes_scored.filter(|&bytes| bytes > 0)?;
        Some(nats * tokens_scored as f64 / std::f64::consts::LN_2 / bytes as f64)
    };
    let per = |count: Option<u64>| Some((nll_sum / count.filter(|&n| n > 0)? as f64).exp());
    let found = result.divergence.map(|found| divergence(task, found));
    let (divergence, noise_floor) = match task.base {
        Some(_) => (found, None),
        None => (None, found),
    };
    Some(Perplexity {
        protocol: task.protocol.clone(),
        context: task.context,
        stride: task.stride,
        value: loss.exp(),
        // d exp(x) = exp(x) dx.
        stderr: loss_stderr.map(|stderr| loss.exp() * stderr),
        stderr_over_tokens: result.nll_squares.and_then(|squares| {
            Some(loss.exp() * stderr_over_tokens(loss, squares, tokens_scored)?)
        }),
        ci95_low: ends.map(|ends| ends.low),
        ci95_high: ends.map(|ends| ends.high),
        nll_sum,
        tokens_scored,
        segments: result.segments.len(),
        tokens_total: result.tokens_total,
        bits_per_byte: bits(loss),
        bits_per_byte_stderr: loss_stderr.and_then(bits),
        word_perplexity: per(result.words_scored),
        byte_perplexity: per(result.bytes_scored),
        text: Text {
            name: task.text.name.clone(),
            digest: task.text.digest.clone(),
        },
        segment_nll: result.segments.iter().map(|segment| segment.nll).collect(),
        segment_tokens: result
            .segments
            .iter()
            .map(|segment| segment.tokens)
            .collect(),
        delta_vs_base: None,
        recovery_percent: None,
        divergence,
        noise_floor,
        under_load: result.under_load.iter().map(under_load).collect(),
        environment: 0,
    })
}

/// The standard error of a mean loss as llama.cpp's perplexity has it: `√((E[v²] − E[v]²) / (n − 1))` over tokens.
fn stderr_over_tokens(loss: f64, squares: f64, tokens: u64) -> Option<f64> {
    let n = tokens as f64;
    (tokens >= 2).then(|| ((squares / n - loss * loss).max(0.0) / (n - 1.0)).sqrt())
}

/// Puts the difference to a base and what is recovered of it beside a perplexity, unless they did not score the same
/// tokens.
pub fn compare(base: &Perplexity, own: &mut Perplexity) {
    let comparable = apart(base, own).is_none();
    own.recovery_percent = comparable.then(|| 100.0 * base.value / own.value);
    own.delta_vs_base = comparable.then(|| delta(base, own));
}

/// What of another perplexity is not as of the base's, so that the two do not compare; `None` if they do.
pub(super) fn apart(base: &Perplexity, other: &Perplexity) -> Option<&'static str> {
    let protocol = |p: &Perplexity| (p.protocol.clone(), p.context, p.stride);
    if base.text != other.text {
        Some("another text than the base's")
    } else if protocol(base) != protocol(other) {
        Some("another protocol than the base's")
    } else if base.segment_tokens != other.segment_tokens {
        Some("other segments than the base's")
    } else {
        None
    }
}

/// The difference to the base over the same segments.
///
/// The variants see the same text, so what a segment adds to both losses cancels within the pair: the interval of the
/// difference is far narrower than two separate intervals would suggest.
fn delta(base: &Perplexity, other: &Perplexity) -> Delta {
    let tokens: Vec<f64> = base.segment_tokens.iter().map(|&n| n as f64).collect();
    let n = tokens.len();
    let loss = |nll: &[f64], drawn: &mut dyn Iterator<Item = usize>| {
        let (sum, whole) = drawn.fold((0.0, 0.0), |(sum, whole), i| {
            (sum + nll[i], whole + tokens[i])
        });
        sum / whole
    };
    let all = |nll: &[f64]| loss(nll, &mut (0..n));
    let (base_loss, other_loss) = (all(&base.segment_nll), all(&other.segment_nll));
    let (value, stderr) = (
        other.value - base.value,
        difference_stderr(base, other, &tokens),
    );
    let differences: Vec<Ratio> = base
        .segment_nll
        .iter()
        .zip(&other.segment_nll)
        .zip(&tokens)
        .map(|((base, other), &whole)| Ratio {
            part: other - base,
            whole,
        })
        .collect();
    let each: Vec<f64> = differences.iter().map(|d| d.part / d.whole).collect();
    let ends = stats::bootstrap(&each, value, stderr, |drawn| {
        let exp = |nll: &[f64]| loss(nll, &mut drawn.iter().copied()).exp();
        exp(&other.segment_nll) - exp(&base.segment_nll)
    });
    let ln_ratio_stderr = stats::rate_standard_error(&differences);
    // The error of a logarithm is the relative error.
    let relative = |p: &Perplexity| Some(p.stderr? / p.value);
    let ratio = (other_loss - base_loss).exp();
    Delta {
        value,
        stderr,
        ci95_low: ends.map(|ends| ends.low),
        ci95_high: ends.map(|ends| ends.high),
        ratio,
        ratio_stderr: ln_ratio_stderr.map(|stderr| ratio * stderr),
        ln_ratio: other_loss - base_loss,
        ln_ratio_stderr,
        ln_ratio_ci95: stats::rate_interval(&differences).map(|ends| Interval {
            low: ends.low,
            high: ends.high,
        }),
        ln_ratio_stderr_unpaired: relative(base).zip(relative(other)).map(|(a, b)| a.hypot(b)),
        p_value: stats::paired_test(&differences),
    }
}

/// The standard error of the difference of two perplexities over the same segments. Each perplexity moves by
/// `exp(r) · e / Σt` when a segment's residual `e = nll − r t` is counted once more, so the difference behaves as a ratio
/// of sums whose residuals are the differences of those moves (the delta method, paired).
fn difference_stderr(base: &Perplexity, other: &Perplexity, tokens: &[f64]) -> Option<f64> {
    let moves = |p: &Perplexity| {
        let (value, loss) = (p.value, p.value.ln());
        p.segment_nll
            .iter()
            .zip(tokens)
            .map(|(nll, t)| value * (nll - loss * t))
            .collect::<Vec<f64>>()
    };
    let residuals: Vec<Ratio> = moves(other)
        .iter()
        .zip(moves(base))
        .zip(tokens)
        .map(|((other, base), &whole)| Ratio {
            part: other - base,
            whole,
        })
        .collect();
    stats::rate_standard_error(&residuals)
}

fn ratios(segments: &[record::Segment]) -> Vec<Ratio> {
    segments
        .iter()
        .map(|segment| Ratio {
            part: segment.nll,
            whole: segment.tokens as f64,
        })
        .collect()
}

fn divergence(task: &record::QualityTask, value: record::Divergence) -> Divergence {
    let record::Divergence {
        mean_kl,
        stderr,
        spread,
        top1_agreement,
        top1_stderr,
        true_token,
        outside_top_k,
        tokens,
    } = value;
    Divergence {
        mean_kl,
        stderr,
        median_kl: spread.map(|spread| spread.p50),
        p90_kl: spread.and_then(|spread| spread.p90),
        p99_kl: spread.and_then(|spread| spread.p99),
        max_kl: spread.map(|spread| spread.max),
        top1_agreement,
        top1_stderr,
        mean_delta_p: true_token.map(|shift| shift.mean),
        rms_delta_p: true_token.map(|shift| shift.rms),
        top_k: task.base.as_ref().and_then(|base| base.top_k),
        outside_top_k,
        tokens,
    }
}

fn under_load(found: &record::UnderLoad) -> UnderLoad {
    UnderLoad {
        batch: found.batch,
        chunk: found.chunk,
        tokens: found.tokens,
        equal: found.largest_difference == 0.0,
        loss_difference: (found.nll - found.nll_alone) / found.tokens.max(1) as f64,
        largest_difference: found.largest_difference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn scored(losses: &[f64], tokens: u64) -> Perplexity {
        let result = record::Perplexity {
            segments: losses
                .iter()
                .map(|loss| record::Segment {
                    nll: loss * tokens as f64,
                    tokens,
                })
                .collect(),
            tokens_total: tokens * losses.len() as u64,
            bytes_scored: Some(4 * tokens * losses.len() as u64),
            words_scored: Some(tokens * losses.len() as u64 / 2),
            nll_squares: Some(losses.iter().map(|loss| loss * loss * tokens as f64).sum()),
            divergence: None,
            under_load: Vec::new(),
            configuration: None,
        };
        perplexity(&fixture::quality_task(), &result).unwrap()
    }

    #[test]
    fn a_loss_of_ln_eight_is_a_perplexity_of_eight() {
        let p = scored(&[8f64.ln(); 5], 100);
        assert!((p.value - 8.0).abs() < 1e-12);
        assert!(p.stderr.unwrap() < 1e-12);
        // Three bits per token, four bytes per token, two tokens per word.
        assert!((p.bits_per_byte.unwrap() - 0.75).abs() < 1e-12);
        assert!((p.byte_perplexity.unwrap() - 2f64.powf(0.75)).abs() < 1e-12);
        assert!((p.word_perplexity.unwrap() - 64.0).abs() < 1e-9);
        assert!(p.stderr_over_tokens.unwrap() < 1e-6);
        assert_eq!(p.tokens_scored, 500);
    }

    #[test]
    fn the_standard_error_follows_the_delta_method() {
        let losses = [1.0, 1.2, 1.4, 1.6, 1.8];
        let p = scored(&losses, 64);
        let expected = 1.4f64.exp() * stats::standard_error(&losses).unwrap();
        assert!((p.stderr.unwrap() - expected).abs() < 1e-9);
        // Over 320 tokens whose losses have a variance of 0.08.
        let over_tokens = 1.4f64.exp() * (0.08f64 / 319.0).sqrt();
        assert!((p.stderr_over_tokens.unwrap() - over_tokens).abs() < 1e-9);
    }

    #[test]
    fn pairing_takes_out_what_segments_share() {
        let base = [2.0, 3.0, 2.5, 3.5, 2.2, 2.9];
        let shifted = base.map(|loss| loss + 0.01);
        let (base, other) = (scored(&base, 64), scored(&shifted, 64));
        let delta = delta(&base, &other);
        assert!((delta.ln_ratio - 0.01).abs() < 1e-9);
        assert!((delta.ratio - 0.01f64.exp()).abs() < 1e-9);
        assert!((delta.value - (other.value - base.value)).abs() < 1e-12);
        assert!(delta.ci95_low.unwrap() < delta.value && delta.value < delta.ci95_high.unwrap());
        let unpaired = (base.stderr.unwrap().powi(2) + other.stderr.unwrap().powi(2)).sqrt();
        assert!(delta.stderr.unwrap() < unpaired / 50.0);
        assert!(delta.ln_ratio_stderr.unwrap() < 1e-9 && delta.ratio_stderr.unwrap() < 1e-9);
        let ends = delta.ln_ratio_ci95.unwrap();
        assert!(ends.low <= delta.ln_ratio + 1e-12 && delta.ln_ratio <= ends.high + 1e-12);
        assert!(delta.ln_ratio_stderr_unpaired.unwrap() > 0.1);
        // Six differences that are all but the same: far from chance by Student's test.
        assert!(delta.p_value.unwrap() < 1e-9);
    }

    #[test]
    fn of_two_segments_the_interval_and_the_p_value_agree() {
        let (base, other) = (scored(&[2.0, 3.0], 64), scored(&[2.01, 3.03], 64));
        let delta = delta(&base, &other);
        // Differences of 0.01 and 0.03: a mean of 0.02 and an error of 0.01, two errors from zero. With one degree of
        // freedom p is 1 − 2 atan(2) / π, and the interval reaches 12.7062 errors.
        let p = 1.0 - 2.0 * 2f64.atan() / std::f64::consts::PI;
        assert!((delta.p_value.unwrap() - p).abs() < 1e-6);
        let ends = delta.ln_ratio_ci95.unwrap();
        assert!((ends.low - (0.02 - 0.127_062)).abs() < 1e-5, "{ends:?}");
        assert!((ends.high - (0.02 + 0.127_062)).abs() < 1e-5, "{ends:?}");
        assert!(delta.ci95_low.unwrap() < 0.0 && 0.0 < delta.ci95_high.unwrap());
    }

    #[test]
    fn what_is_not_scored_alike_does_not_compare() {
        let base = scored(&[1.0, 2.0], 64);
        let against = |change: &dyn Fn(&mut Perplexity)| {
            let mut other = scored(&[1.1, 2.0], 64);
            change(&mut other);
            compare(&base, &mut other);
            let both = (other.delta_vs_base.is_some(), other.recovery_percent);
            (both, apart(&base, &other))
        };
        let ((differs, recovered), why) = against(&|_| {});
        assert!(differs && why.is_none());
        // Half of the tokens lose a tenth of a nat.
        assert!((recovered.unwrap() - 100.0 * (-0.05f64).exp()).abs() < 1e-9);
        let none = |why| ((false, None), Some(why));
        assert_eq!(
            against(&|other| other.text.digest.push('x')),
            none("another text than the base's")
        );
        for change in [
            |other: &mut Perplexity| other.protocol.push('x'),
            |other: &mut Perplexity| other.context += 1,
            |other: &mut Perplexity| other.stride = Some(7),
        ] {
            assert_eq!(against(&change), none("another protocol than the base's"));
        }
        let segments = none("other segments than the base's");
        assert_eq!(against(&|other| *other = scored(&[1.0], 64)), segments);
        assert_eq!(against(&|other| *other = scored(&[1.0, 2.0], 63)), segments);
    }
}
