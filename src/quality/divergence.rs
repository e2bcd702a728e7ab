//! How far predictions are from those of a base, token by token.
//!
//! With `p` the base's distribution and `q` the other's, a token's Kullback–Leibler divergence is `Σ p ln(p/q)`, here
//! summed as `Σ (p ln(p/q) − p + q)`: the same where both sum to one, and never negative by rounding. Where only the
//! base's most likely tokens are kept, all others count as one, which can only lower a divergence (the log-sum
//! inequality).

use std::path::Path;

use rayon::prelude::*;

use super::base::{Header, Reader, Row, Softmax, row_of};
use super::perplexity::{Segment, Target, Witness};
use crate::error::Result;

/// The divergence of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SegmentDivergence {
    /// Sum over its tokens of their divergences, in nats.
    pub kl: f64,
    /// Tokens whose most likely token is the same.
    pub same_top: u64,
    /// Tokens.
    pub tokens: u64,
}

/// How far a variant is from its base on the tokens of a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Divergence {
    /// Segment by segment.
    pub segments: Vec<SegmentDivergence>,
    /// The divergence of every token, in nats.
    pub tokens: Vec<f32>,
    /// Sum over tokens of what the probability of the text's token gains.
    pub delta_p: f64,
    /// Sum of its squares.
    pub delta_p_squares: f64,
    /// Sum over tokens of the base's probability that is compared as one.
    pub outside: f64,
    /// The base's losses of the same tokens.
    pub base: Vec<Segment>,
}

/// Holds predictions against those of a base as they come.
pub struct Comparison {
    reader: Reader,
    found: Divergence,
}

/// What one token adds.
struct TokenDivergence {
    kl: f64,
    same_top: bool,
    delta_p: f64,
    outside: f32,
    base_log_prob: f32,
}

impl Comparison {
    /// Opens the predictions of the base that `key` names, of a text of so many segments.
    ///
    /// # Errors
    /// If the file cannot be read, is cut short, or is another base's.
    pub fn open(path: &Path, key: &str, vocab: usize, segments: usize) -> Result<Self> {
        Ok(Self {
            reader: Reader::open(path, key, vocab)?,
            found: Divergence {
                segments: vec![SegmentDivergence::default(); segments],
                base: vec![Segment::default(); segments],
                ..Divergence::default()
            },
        })
    }

    /// The whole comparison.
    ///
    /// # Errors
    /// If the file of the base is damaged.
    pub fn finish(self) -> Result<Divergence> {
        self.reader.finish()?;
        Ok(self.found)
    }
}

impl Witness for Comparison {
    fn read(&mut self, targets: &[Target], logits: &[f32]) -> Result<()> {
        let words = self.reader.next(targets.len())?;
        let header = self.reader.header();
        let rows: Vec<Option<TokenDivergence>> = targets
            .par_iter()
            .zip(words.par_chunks_exact(self.reader.row_words()))
            .zip(logits.par_chunks_exact(header.vocab))
            .map(|((target, words), logits)| {
                diverged(header, &row_of(header, words), logits, target.log_prob)
            })
            .collect();
        let known = rows.len();
        let rows: Vec<TokenDivergence> = rows.into_iter().flatten().collect();
        if rows.len() < known {
            return Err(self
                .reader
                .damaged("it names tokens outside the vocabulary"));
        }
        for (target, row) in targets.iter().zip(rows) {
            let segment = &mut self.found.segments[target.segment];
            segment.kl += row.kl;
            segment.same_top += u64::from(row.same_top);
            segment.tokens += 1;
            self.found.tokens.push(row.kl as f32);
            self.found.delta_p += row.delta_p;
            self.found.delta_p_squares += row.delta_p * row.delta_p;
            self.found.outside += f64::from(row.outside);
            self.found.base[target.segment].add(row.base_log_prob);
        }
        Ok(())
    }
}

/// One token; `None` if the row does not fit the vocabulary.
fn diverged(
    header: &Header,
    base: &Row<'_>,
    logits: &[f32],
    log_prob: f32,
) -> Option<TokenDivergence> {
    if base
        .tokens
        .is_some_and(|tokens| tokens.iter().any(|&t| t as usize >= header.vocab))
    {
        return None;
    }
    let softmax = Softmax::of(logits);
    let part = |log_p: f32, log_q: f32| {
        let (log_p, log_q) = (f64::from(log_p), f64::from(log_q));
        let (p, q) = (log_p.exp(), log_q.exp());
        p * (log_p - log_q) - p + q
    };
    let kl: f64 = match base.tokens {
        None => (0..header.vocab as u32)
            .zip(base.log_probs)
            .map(|(token, &log_p)| part(log_p, softmax.log_prob(token)))
            .sum(),
        Some(tokens) => {
            let kept: f64 = tokens
                .iter()
                .zip(base.log_probs)
                .map(|(&token, &log_p)| part(log_p, softmax.log_prob(token)))
                .sum();
            // A probability that vanished in f32 is taken for the smallest that does not.
            let log = |x: f32| x.max(f32::MIN_POSITIVE).ln();
            kept + part(log(base.outside), log(softmax.outside(tokens)))
        }
    };
    let probability = |log_prob: f32| f64::from(log_prob).exp();
    Some(TokenDivergence {
        kl,
        same_top: softmax.top() == base.top,
        delta_p: probability(log_prob) - probability(base.log_prob),
        outside: base.outside,
        base_log_prob: base.log_prob,
    })
}

#[cfg(test)]
mod tests {
    use super::super::base::Recorder;
    use super::*;

    const KEY: &str = "0123";

    /// Targets whose log-probabilities are those of the logits.
    fn targets(tokens: &[u32], logits: &[[f32; 4]]) -> Vec<Target> {
        let each = tokens.iter().zip(logits).enumerate();
        each.map(|(i, (&token, logits))| Target {
            segment: i / 2,
            log_prob: Softmax::of(logits).log_prob(token),
        })
        .collect()
    }

    /// Rows of a base, held against rows of another.
    fn compared(
        top_k: Option<usize>,
        base: &[[f32; 4]],
        other: &[[f32; 4]],
        tokens: &[u32],
    ) -> Divergence {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/x.base");
        let header = Header::new(KEY, 4, top_k, base.len() as u64);
        let mut recorder = Recorder::create(&path, header).unwrap();
        recorder
            .read(&targets(tokens, base), &base.concat())
            .unwrap();
        assert!(!path.exists());
        recorder.finish().unwrap();
        let mut comparison = Comparison::open(&path, KEY, 4, base.len().div_ceil(2)).unwrap();
        comparison
            .read(&targets(tokens, other), &other.concat())
            .unwrap();
        comparison.finish().unwrap()
    }

    const BASE: [f32; 4] = [2.0, 1.0, 0.0, -1.0];
    const OTHER: [f32; 4] = [1.9, 1.1, 0.0, -1.2];

    // Figures of a plain computation in f64.
    #[test]
    fn a_known_divergence() {
        let found = compared(None, &[BASE], &[OTHER], &[0]);
        assert!(
            (f64::from(found.tokens[0]) - 0.004_025_093_6).abs() < 1e-7,
            "{found:?}"
        );
        assert!((found.delta_p + 0.035_622_064_1).abs() < 1e-7);
        assert!((found.base[0].nll - 0.440_189_698_6).abs() < 1e-6);
        assert_eq!((found.segments[0].same_top, found.outside), (1, 0.0));
    }

    #[test]
    fn fewer_kept_tokens_never_raise_it() {
        let base = [BASE, [0.0, 3.0, -2.0, 0.5], [1.0, 1.0, 1.0, 1.0]];
        let other = [OTHER, [0.5, 2.0, 0.0, 0.0], [4.0, 0.0, -1.0, 0.3]];
        let of = |k| compared(k, &base, &other, &[0, 1, 2]);
        let whole = of(None);
        let mut last = whole.segments.iter().map(|s| s.kl).sum::<f64>();
        for k in [3, 2, 1] {
            let found = of(Some(k));
            let kl = found.segments.iter().map(|s| s.kl).sum::<f64>();
            assert!(kl <= last + 1e-7 && kl > 0.0, "{k}: {kl} after {last}");
            assert!(found.outside > 0.0);
            assert_eq!(found.segments[0].same_top, whole.segments[0].same_top);
            assert_eq!(found.base, whole.base);
            last = kl;
        }
        // Three of four kept and the fourth alone are all four.
        assert!((f64::from(of(Some(3)).tokens[2]) - f64::from(whole.tokens[2])).abs() < 1e-6);
        // Of equals the first is the most likely.
        assert_eq!(whole.segments[1].same_top, 1);
    }

    #[test]
    fn nothing_diverges_from_itself() {
        let rows = [BASE, [-30.0, 80.0, 80.0, -90.0], [0.1, 0.2, 0.3, 0.25]];
        for k in [None, Some(1), Some(2), Some(4), Some(9)] {
            let found = compared(k, &rows, &rows, &[3, 0, 1]);
            assert!(found.tokens.iter().all(|&kl| kl == 0.0), "{k:?}: {found:?}");
            assert_eq!(found.segments.iter().map(|s| s.same_top).sum::<u64>(), 3);
            assert_eq!((found.delta_p, found.delta_p_squares), (0.0, 0.0));
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_half_a_file_never_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.base");
        let record = |rows: u64| {
            let header = Header::new(KEY, 4, Some(2), 2);
            let mut recorder = Recorder::create(&path, header).unwrap();
            for _ in 0..rows {
                recorder.read(&targets(&[0], &[BASE]), &BASE).unwrap();
            }
            recorder.finish()
        };
        assert!(record(1).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        record(2).unwrap();
        let good = std::fs::read(&path).unwrap();
        let read = |key: &str| -> Result<Divergence> {
            let mut comparison = Comparison::open(&path, key, 4, 1)?;
            comparison.read(&targets(&[0, 0], &[BASE; 2]), &[BASE; 2].concat())?;
            comparison.finish()
        };
        read(KEY).unwrap();
        let spoiled = |bytes: &[u8], key: &str, what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = read(key).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.to_string().contains("x.base"), "{error}");
            assert_eq!(error.exit_code(), 65);
        };
        let mut flipped = good.clone();
        let at = flipped.len() - HASH_AND_LAST;
        flipped[at] ^= 1;
        spoiled(&flipped, KEY, "checksum");
        spoiled(&good[..good.len() - 1], KEY, "bytes instead of");
        spoiled(b"{}\n", KEY, "not the predictions");
        spoiled(&good, "other", "another base");
    }

    /// The last number of a row stands this many bytes before the end.
    const HASH_AND_LAST: usize = 36;
}
