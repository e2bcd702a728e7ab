//! From losses to perplexity, bits per byte and the paired difference to a base.

use super::record;
use super::study::{Delta, Divergence, Perplexity, Text};
use crate::stats::{self, Ratio};

/// The perplexity of one record, without the comparison to a base; `None` if nothing was scored.
pub(super) fn perplexity(
    task: &record::QualityTask,
    result: &record::Perplexity,
) -> Option<Perplexity> {
    let ratios = ratios(&result.segments);
    let loss = stats::rate(&ratios).filter(|loss| loss.is_finite())?;
    let loss_stderr = stats::rate_standard_error(&ratios);
    let ends = stats::rate_interval(&ratios).map(|ends| ends.map(f64::exp));
    let nll_sum = result.segments.iter().map(|segment| segment.nll).sum();
    let tokens_scored: u64 = result.segments.iter().map(|segment| segment.tokens).sum();
    // Nats per token to bits per byte: by the tokens that the scored bytes make.
    let bits = |nats: f64| {
        let bytes = result.bytes_scored.filter(|&bytes| bytes > 0)?;
        Some(nats * tokens_scored as f64 / std::f64::consts::LN_2 / bytes as f64)
    };
    Some(Perplexity {
        protocol: task.protocol.clone(),
        context: task.context,
        value: loss.exp(),
        // d exp(x) = exp(x) dx.
        stderr: loss_stderr.map(|stderr| loss.exp() * stderr),
        ci95_low: ends.map(|ends| ends.low),
        ci95_high: ends.map(|ends| ends.high),
        nll_sum,
        tokens_scored,
        segments: result.segments.len(),
        tokens_total: result.tokens_total,
        bits_per_byte: bits(loss),
        bits_per_byte_stderr: loss_stderr.and_then(bits),
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
        divergence: result.divergence.map(divergence),
    })
}

/// The difference to the base over the same segments; `None` if they did not score the same tokens.
///
/// The variants see the same text, so what a segment adds to both losses cancels within the pair: the interval of the
/// difference is far narrower than two separate intervals would suggest.
pub(super) fn delta(base: &Perplexity, other: &Perplexity) -> Option<Delta> {
    if base.segment_tokens != other.segment_tokens
        || base.text != other.text
        || base.protocol != other.protocol
    {
        return None;
    }
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
    let ends = (n >= 2).then(|| {
        stats::bootstrap(n, |drawn| {
            let exp = |nll: &[f64]| loss(nll, &mut drawn.iter().copied()).exp();
            exp(&other.segment_nll) - exp(&base.segment_nll)
        })
    });
    Some(Delta {
        value: other.value - base.value,
        stderr: difference_stderr(base, other, &tokens),
        ci95_low: ends.map(|ends| ends.low),
        ci95_high: ends.map(|ends| ends.high),
        ratio: (other_loss - base_loss).exp(),
        ln_ratio: other_loss - base_loss,
    })
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

fn divergence(value: record::Divergence) -> Divergence {
    let record::Divergence {
        mean_kl,
        stderr,
        top1_agreement,
        tokens,
    } = value;
    Divergence {
        mean_kl,
        stderr,
        top1_agreement,
        tokens,
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
            divergence: None,
        };
        perplexity(&fixture::quality_task(), &result).unwrap()
    }

    #[test]
    fn a_loss_of_ln_eight_is_a_perplexity_of_eight() {
        let p = scored(&[8f64.ln(); 5], 100);
        assert!((p.value - 8.0).abs() < 1e-12);
        assert!(p.stderr.unwrap() < 1e-12);
        // Three bits per token, four bytes per token.
        assert!((p.bits_per_byte.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(p.tokens_scored, 500);
    }

    #[test]
    fn the_standard_error_follows_the_delta_method() {
        let losses = [1.0, 1.2, 1.4, 1.6, 1.8];
        let p = scored(&losses, 64);
        let expected = 1.4f64.exp() * stats::standard_error(&losses).unwrap();
        assert!((p.stderr.unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn pairing_takes_out_what_segments_share() {
        let base = [2.0, 3.0, 2.5, 3.5, 2.2, 2.9];
        let shifted = base.map(|loss| loss + 0.01);
        let (base, other) = (scored(&base, 64), scored(&shifted, 64));
        let delta = delta(&base, &other).unwrap();
        assert!((delta.ln_ratio - 0.01).abs() < 1e-9);
        assert!((delta.ratio - 0.01f64.exp()).abs() < 1e-9);
        assert!((delta.value - (other.value - base.value)).abs() < 1e-12);
        assert!(delta.ci95_low.unwrap() < delta.value && delta.value < delta.ci95_high.unwrap());
        let unpaired = (base.stderr.unwrap().powi(2) + other.stderr.unwrap().powi(2)).sqrt();
        assert!(delta.stderr.unwrap() < unpaired / 50.0);
    }

    #[test]
    fn other_segments_do_not_pair() {
        assert_eq!(
            delta(&scored(&[1.0, 2.0], 64), &scored(&[1.0, 2.0], 63)),
            None
        );
        assert_eq!(delta(&scored(&[1.0, 2.0], 64), &scored(&[1.0], 64)), None);
    }
}
