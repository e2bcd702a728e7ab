//! The predictions of the base that variants are compared with: where they are kept, and what a comparison comes to.

use std::path::PathBuf;

use super::plan::BasePlan;
use crate::error::Result;
use crate::quality::{BaseHeader, Comparison, Divergence, Layout, Recorder, SegmentDivergence};
use crate::results::record::{
    Base, Divergence as Found, Key, KlSpread, QualityTask, Subject, TrueTokenShift,
};
use crate::stats::{self, Ratio};

/// A file of predictions, there or yet to be made. Its name is the address of the base's own point, so it fits the same
/// model, variant, device and text, and nothing else.
#[derive(Debug, Clone)]
pub(super) struct BaseFile {
    path: PathBuf,
    header: BaseHeader,
}

impl BaseFile {
    /// The file of what `subject` predicts for `task`, a text cut as `layout` says.
    pub(super) fn of(
        plan: &BasePlan,
        subject: &Subject,
        task: &QualityTask,
        vocab: usize,
        layout: &Layout,
    ) -> Self {
        let key = Key::of_quality(subject, task).to_string();
        let header = BaseHeader::new(&key, vocab, plan.top_k, layout.tokens_scored());
        let kept = if header.is_whole() {
            "all".to_owned()
        } else {
            format!("top{}", header.kept)
        };
        Self {
            path: plan.folder.join(format!("{key}-{kept}.base")),
            header,
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_file()
    }

    /// That it was made, in words.
    pub(super) fn told(&self) -> String {
        let (size, place) = (self.header.size(), self.path.display());
        format!("predictions kept for comparison, {size}: {place}")
    }

    /// How a record names the base of this file.
    pub(super) fn named(&self, variant: &str) -> Base {
        Base {
            variant: variant.to_owned(),
            top_k: (!self.header.is_whole()).then_some(self.header.kept),
        }
    }

    pub(super) fn recorder(&self) -> Result<Recorder> {
        Recorder::create(&self.path, self.header.clone())
    }

    pub(super) fn comparison(&self, layout: &Layout) -> Result<Comparison> {
        let Self { path, header } = self;
        Comparison::open(path, &header.key, header.vocab, layout.segments)
    }

    /// A comparison in the terms of records.
    pub(super) fn summary(&self, found: &Divergence) -> Found {
        let scored = || found.segments.iter().filter(|s| s.tokens > 0);
        let ratios = |part: fn(&SegmentDivergence) -> f64| -> Vec<Ratio> {
            let of = |s: &SegmentDivergence| Ratio {
                part: part(s),
                whole: s.tokens as f64,
            };
            scored().map(of).collect()
        };
        let kl = ratios(|s| s.kl);
        let same = ratios(|s| s.same_top as f64);
        let tokens = found.tokens.len() as f64;
        let mut sorted: Vec<f64> = found.tokens.iter().map(|&kl| f64::from(kl)).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |p| stats::quantile(&sorted, p);
        let valid = |p| quantile(p).filter(|_| stats::supports(p, sorted.len()));
        let spread = quantile(0.5)
            .zip(sorted.last())
            .map(|(p50, &max)| KlSpread {
                p50,
                p90: valid(0.9),
                p99: valid(0.99),
                max,
            });
        Found {
            mean_kl: stats::rate(&kl).unwrap_or_default(),
            stderr: stats::rate_standard_error(&kl),
            spread,
            top1_agreement: stats::rate(&same).unwrap_or_default(),
            top1_stderr: stats::rate_standard_error(&same),
            true_token: (tokens > 0.0).then(|| TrueTokenShift {
                mean: found.delta_p / tokens,
                rms: (found.delta_p_squares / tokens).sqrt(),
            }),
            outside_top_k: (tokens > 0.0).then(|| found.outside / tokens),
            tokens: found.tokens.len() as u64,
        }
    }
}
