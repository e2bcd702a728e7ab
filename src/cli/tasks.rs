//! How tasks are put to a model: flags of `eval` and `study`, both of which name the tasks in `--tasks`.

use clap::Args;

use super::parse;
use super::switches::Switch;
use crate::quality::tasks::{Limit, Suite};
use crate::study::TaskPlan;

#[derive(Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct TaskFlags {
    /// The first N documents of each task, or a share below 1 [default: all]
    #[arg(long, value_name = "N", value_parser = parse_limit, requires = "tasks")]
    limit: Option<Limit>,
    /// Answered examples before each document [default: what the task says, else 0]
    #[arg(long, value_name = "K", requires = "tasks")]
    num_fewshot: Option<usize>,
    /// Whether texts begin with the tokenizer's beginning of text [default: its habit]
    #[arg(long, value_enum, value_name = "on|off", requires = "tasks")]
    add_bos: Option<Switch>,
    /// Tokens that the model reads at most at once; longer requests lose their beginning [default: its context]
    #[arg(long, value_name = "N", value_parser = parse::positive, requires = "tasks")]
    max_length: Option<usize>,
}

impl TaskFlags {
    /// These tasks, put in this way.
    pub(super) fn plan(&self, suite: Suite) -> TaskPlan {
        TaskPlan {
            suite,
            shots: self.num_fewshot,
            limit: self.limit,
            add_bos: self.add_bos.map(Switch::is_on),
            max_length: self.max_length,
            under_load: false,
        }
    }
}

fn parse_limit(s: &str) -> Result<Limit, String> {
    match (s.parse::<usize>(), s.parse::<f64>()) {
        (Ok(count), _) if count > 0 => Ok(Limit::Count(count)),
        (Err(_), Ok(share)) if share > 0.0 && share < 1.0 => Ok(Limit::Share(share)),
        _ => Err("expected a number of documents or a share below 1, such as 200 or 0.1".into()),
    }
}
