//! Who does the work of a run: for each variant a worker that loads it, keeps it loaded, and measures what it is asked to.
//!
//! A worker stands in this process ([`Worker`]) or in a child process of the same program ([`Child`], which [`serve()`]
//! answers from the other side). Whoever plans the run asks both alike ([`Hand`]) and cannot tell them apart, except that a
//! child can crash, hang or be killed without harm to anything but the point it was at.
//!
//! The child is given the same command line, so it makes the same plan; questions name models, variants and points by their
//! place in it. [`message`] is what goes through the pipes.

mod child;
mod fault;
mod message;
mod serve;
mod site;

pub use child::Launch;
pub use fault::Faults;
pub use serve::serve;

pub(super) use child::Child;
pub(super) use message::{Answer, Fault, FaultKind, News, Opening, Phase, Request};
pub(super) use site::{Site, Worker};

/// A worker, wherever it is.
pub(super) trait Hand {
    /// Does what is asked; `tell` hears how far it is.
    fn ask(&mut self, request: &Request, tell: &mut dyn FnMut(News)) -> Answer;

    /// The process that it is, if it is one of its own and has not ended.
    fn process(&mut self) -> Option<u32>;
}
