//! What it takes to generate many tokens without losing more than so much: the question behind a study, answered by each
//! variant that keeps enough of its base's quality.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::study::{Study, Variant};

/// So many tokens, at a recovery of at least so much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Goal {
    /// Tokens to generate.
    pub tokens: u64,
    /// What must be left of the base's quality, in percent; point estimates decide.
    pub recovery_percent: f64,
    /// Whose recovery that is; null where no variant has one.
    pub of: Option<RecoveryOf>,
    /// Who decodes them in the least time; null where nothing qualifies, and across models.
    pub fastest: Option<Choice>,
    /// Who decodes them with the least energy.
    pub most_frugal: Option<Choice>,
}

/// What recovery is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryOf {
    /// The mean over tasks over that of the base.
    TaskAverage,
    /// The base's perplexity over the variant's.
    Perplexity,
}

impl RecoveryOf {
    /// The name in running text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskAverage => "task average",
            Self::Perplexity => "perplexity",
        }
    }
}

/// A variant in a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice {
    /// The variant, by its label.
    pub variant: String,
    /// Sequences side by side.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt_tokens: usize,
    /// Tokens generated for each.
    pub generated_tokens: usize,
    /// Tokens already in the cache before the prompt.
    pub depth: usize,
    /// What the tokens take, in seconds or joules.
    pub cost: f64,
}

impl Default for Goal {
    fn default() -> Self {
        Self {
            tokens: 1_000_000,
            recovery_percent: 99.0,
            of: None,
            fastest: None,
            most_frugal: None,
        }
    }
}

impl Study {
    /// The same study with another goal.
    pub fn with_goal(mut self, tokens: u64, recovery_percent: f64) -> Self {
        self.goal.tokens = tokens;
        self.goal.recovery_percent = recovery_percent;
        self.settle_goal();
        self
    }

    /// Says of each cell what the goal takes there, if its variant keeps enough, and of the study who does best.
    pub(super) fn settle_goal(&mut self) {
        let (tokens, least) = (self.goal.tokens as f64, self.goal.recovery_percent);
        let has = |of: RecoveryOf| {
            self.variants
                .iter()
                .any(|v| v.recovery_percent(of).is_some())
        };
        let of = [RecoveryOf::TaskAverage, RecoveryOf::Perplexity]
            .into_iter()
            .find(|&of| has(of));
        for variant in &mut self.variants {
            let kept = of.and_then(|of| variant.recovery_percent(of));
            let kept = kept.is_some_and(|recovery| recovery >= least);
            for speed in &mut variant.speed {
                let per_token = speed.energy_use().and_then(|e| e.j_per_generated_token);
                let rate = speed.decode_tokens_per_second.filter(|&rate| rate > 0.0);
                speed.goal_seconds = rate.filter(|_| kept).map(|rate| tokens / rate);
                speed.goal_joules = per_token.filter(|_| kept).map(|joules| tokens * joules);
            }
        }
        self.goal.of = of;
        // A recovery is of a model's own base: it says nothing between models.
        let one_model = self.models.is_empty();
        self.goal.fastest = one_model.then(|| self.least(|s| s.goal_seconds)).flatten();
        self.goal.most_frugal = one_model.then(|| self.least(|s| s.goal_joules)).flatten();
    }

    fn least(&self, cost: fn(&super::study::Speed) -> Option<f64>) -> Option<Choice> {
        let cells = self.variants.iter().flat_map(|variant| {
            let speeds = variant.speed.iter();
            speeds.filter_map(move |speed| Some((cost(speed)?, variant, speed)))
        });
        let (cost, variant, speed) = cells.min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Choice {
            variant: self.label(variant),
            batch: speed.batch,
            prompt_tokens: speed.prompt_tokens,
            generated_tokens: speed.generated_tokens,
            depth: speed.depth,
            cost,
        })
    }
}

impl Variant {
    /// What is left of the base's quality, in percent.
    pub fn recovery_percent(&self, of: RecoveryOf) -> Option<f64> {
        match of {
            RecoveryOf::TaskAverage => self.task_average?.recovery_percent(),
            RecoveryOf::Perplexity => self.perplexity.as_ref()?.recovery_percent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn only_those_who_keep_enough_have_a_cost() {
        let study = fixture::study();
        assert_eq!(study.goal.of, Some(RecoveryOf::Perplexity));
        let by_name = |study: &Study, name: &str| {
            let variant = study.variants.iter().find(|v| v.name == name).unwrap();
            variant.speed[0].clone()
        };
        let (int8, w4) = (by_name(&study, "int8"), by_name(&study, "w4a16"));
        assert_eq!((w4.goal_seconds, w4.goal_joules), (None, None));
        let seconds = 1e6 / int8.decode_tokens_per_second.unwrap();
        assert_eq!(int8.goal_seconds, Some(seconds));
        assert!(int8.goal_joules.is_some());
        let fastest = study.goal.fastest.as_ref().unwrap();
        assert_eq!((fastest.variant.as_str(), fastest.batch), ("int8", 64));
        assert!(study.goal.most_frugal.is_some());

        let loose = study.with_goal(1000, 80.0);
        assert_eq!(loose.goal.fastest.as_ref().unwrap().variant, "w4a16");
        let int8 = by_name(&loose, "int8").goal_seconds.unwrap();
        assert!((int8 - seconds / 1000.0).abs() < 1e-9);
        let strict = loose.with_goal(1000, 101.0);
        assert_eq!(strict.goal.fastest, None);
        assert_eq!(by_name(&strict, "bf16").goal_seconds, None);
    }

    #[test]
    fn tasks_come_before_perplexity() {
        let study = fixture::task_study();
        assert_eq!(study.goal.of, Some(RecoveryOf::TaskAverage));
        let kept = |v: &Variant| v.recovery_percent(RecoveryOf::TaskAverage) >= Some(99.0);
        for variant in &study.variants {
            let has = variant.speed[0].goal_seconds.is_some();
            assert_eq!(has, kept(variant), "{}", variant.name);
        }
        assert!(study.variants.iter().any(kept) && !study.variants.iter().all(kept));
    }
}
