//! How much the model's predictions change when one part of it alone is quantised: the Kullback-Leibler divergence of what
//! it predicts from what it predicted, and the change of its loss.

use rayon::prelude::*;

use super::assign::Place;
use super::calibration::Samples;
use super::decoder::{Decoder, DeviceLayer, Head};
use super::grid::dequantise;
use super::layer::{HostLayer, Site};
use super::quantise::{Progress, Quantisation, Watch, no_calibration, plain_dtype, rounded};
use crate::error::{Error, Result};

/// Tokens that the model is judged on.
const TOKENS: usize = 1024;

/// What quantising one part alone costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// The part.
    pub place: Place,
    /// Mean Kullback-Leibler divergence of the predictions from those of the whole model, in nats per token.
    pub divergence: f64,
    /// Change of the mean loss, in nats per token.
    pub loss: f64,
    /// Weights of the part.
    pub parameters: u64,
}

impl Quantisation<'_> {
    /// Quantises every site of every layer alone and judges the model by the first tokens of the samples; the costliest
    /// first. Holds the whole model on the device, plain.
    ///
    /// # Errors
    /// If there are no samples, a weight is not finite, or reading fails. What `watch` returns stops it.
    pub fn sensitivity(&self, watch: Watch<'_>) -> Result<Vec<Sensitivity>> {
        let samples = self.samples.ok_or_else(|| no_calibration(self.variant))?;
        let assignment = self.assignment(plain_dtype(self.model))?;
        let (config, layers) = (&self.model.config, self.model.config.layers);
        let judged = judged(samples);
        let plain = (0..layers)
            .map(|i| DeviceLayer::new(self.device, self.act, &HostLayer::read(self.model, i)?))
            .collect::<Result<Vec<_>>>()?;
        let head = Head::new(self.model, self.device, self.act)?;
        let calibrated = self.variant.method.is_calibrated();
        let new = |samples| Decoder::new(self.model, samples, self.device, self.act);
        let mut reader = calibrated.then(|| new(samples)).transpose()?;
        let mut judge = new(&judged)?;
        let mut quiet = || Ok(());
        let begin = judge.stream().to_vec();
        for layer in &plain {
            judge.advance(layer, &mut quiet)?;
        }
        let base = Predictions::of(&head, &judge, &judged, config.vocab)?;
        let mut before = begin;
        let mut found = Vec::new();
        let all = (layers * Site::ALL.len()) as f64;
        for index in 0..layers {
            let mut layer = HostLayer::read(self.model, index)?;
            let forms = assignment.forms(index)?;
            let mut seen = |done: usize| {
                watch(Progress {
                    layer: index,
                    layers,
                    share: (index * Site::ALL.len() + done) as f64 / all,
                    finished: None,
                })
            };
            let statistics = match &mut reader {
                None => None,
                Some(reader) => Some(reader.observe(&plain[index], &mut || seen(0))?),
            };
            let variant = self.variant;
            let dtype = assignment.dtype;
            let done = rounded(&mut layer, statistics, &forms, variant, dtype, &mut || {
                seen(0)
            })?;
            for site in Site::ALL {
                let mut parameters = 0;
                let mut originals = Vec::new();
                for member in site.members() {
                    let matrix = &mut layer.matrices[member];
                    parameters += (matrix.n * matrix.k) as u64;
                    if let (Some(packed), _) = &done[member] {
                        let quantised = dequantise(packed);
                        originals.push((member, std::mem::replace(&mut matrix.weights, quantised)));
                    }
                }
                let changed = DeviceLayer::new(self.device, self.act, &layer)?;
                for (member, weights) in originals {
                    layer.matrices[member].weights = weights;
                }
                judge.set_stream(before.clone());
                judge.advance(&changed, &mut quiet)?;
                for layer in &plain[index + 1..] {
                    judge.advance(layer, &mut quiet)?;
                }
                let (divergence, loss) = base.compared(&head, &judge)?;
                found.push(Sensitivity {
                    place: Place {
                        layer: index,
                        site: Some(site),
                    },
                    divergence,
                    loss,
                    parameters,
                });
                seen(site as usize + 1)?;
            }
            judge.set_stream(std::mem::take(&mut before));
            judge.advance(&plain[index], &mut quiet)?;
            before = judge.stream().to_vec();
            if let Some(reader) = &mut reader {
                reader.advance(&plain[index], &mut || seen(Site::ALL.len()))?;
            }
        }
        if let Some(bad) = found.iter().find(|s| !s.divergence.is_finite()) {
            return Err(Error::NotFinite(format!(
                "the predictions with {} quantised are not finite",
                bad.place
            )));
        }
        found.sort_by(|a, b| b.divergence.total_cmp(&a.divergence));
        Ok(found)
    }
}

/// The first samples, up to [`TOKENS`] tokens, or the beginning of one that is longer.
fn judged(samples: &Samples) -> Samples {
    let length = samples.length.min(TOKENS);
    let rows = samples.rows.iter().take((TOKENS / length).max(1));
    Samples {
        length,
        rows: rows.map(|row| row[..length].to_vec()).collect(),
    }
}

/// What a model predicts after every token of some text.
struct Predictions {
    vocab: usize,
    length: usize,
    ids: Vec<u32>,
    /// Logarithms of probabilities of all tokens, chunk by chunk, each `[tokens, vocab]`.
    logs: Vec<Vec<f32>>,
}

impl Predictions {
    fn of(head: &Head<'_>, decoder: &Decoder<'_>, samples: &Samples, vocab: usize) -> Result<Self> {
        let logs = decoder.stream().iter().map(|chunk| {
            let mut logits = head.logits(chunk)?;
            logits.par_chunks_mut(vocab).for_each(normalise);
            Ok(logits)
        });
        Ok(Self {
            vocab,
            length: samples.length,
            ids: samples.rows.concat(),
            logs: logs.collect::<Result<_>>()?,
        })
    }

    /// The mean divergence of the predictions of `decoder`'s stream from these, and the change of the mean loss.
    fn compared(&self, head: &Head<'_>, decoder: &Decoder<'_>) -> Result<(f64, f64)> {
        let (mut divergence, mut loss, mut scored, mut first) = (0.0, 0.0, 0_u64, 0);
        for (chunk, base) in decoder.stream().iter().zip(&self.logs) {
            let mut logits = head.logits(chunk)?;
            let tokens = logits.len() / self.vocab;
            let rows = logits
                .par_chunks_mut(self.vocab)
                .zip(base.par_chunks(self.vocab));
            let (d, l, n) = rows
                .enumerate()
                .map(|(i, (row, base))| {
                    normalise(row);
                    let terms = base.iter().zip(&*row);
                    let terms = terms.map(|(&p, &q)| f64::from(p.exp()) * f64::from(p - q));
                    let at = first + i;
                    // The last token of a run has none to predict.
                    let last = (at + 1).is_multiple_of(self.length);
                    let target = (!last).then(|| self.ids[at + 1] as usize);
                    let change = target.map(|t| f64::from(base[t] - row[t]));
                    (terms.sum::<f64>(), change.unwrap_or(0.0), u64::from(!last))
                })
                .reduce(|| (0.0, 0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            divergence += d;
            loss += l;
            scored += n;
            first += tokens;
        }
        Ok((
            divergence / first.max(1) as f64,
            loss / scored.max(1) as f64,
        ))
    }
}

/// Logits into logarithms of probabilities.
fn normalise(row: &mut [f32]) {
    let most = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = row.iter().map(|&x| f64::from((x - most).exp())).sum();
    let log = most + sum.ln() as f32;
    row.iter_mut().for_each(|x| *x -= log);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_become_logarithms_of_probabilities() {
        let mut row = [2.0, 1.0, 0.0, -1.0];
        normalise(&mut row);
        let truth = [-0.440_189_7, -1.440_189_7, -2.440_189_7, -3.440_189_7];
        for (found, truth) in row.iter().zip(truth) {
            assert!((found - truth).abs() < 1e-6, "{found} {truth}");
        }
    }

    #[test]
    fn no_more_tokens_are_judged_than_the_limit() {
        let samples = |length, rows| Samples {
            length,
            rows: vec![vec![0; length]; rows],
        };
        assert_eq!(judged(&samples(512, 8)).tokens(), 1024);
        assert_eq!(judged(&samples(2048, 8)).tokens(), 1024);
        assert_eq!(judged(&samples(100, 3)).tokens(), 300);
    }
}
