//! The child's side: requests come in as lines, news and answers go out as lines.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::job::{Job, jobs};
use super::super::plan::Plan;
use super::Hand;
use super::fault::Faults;
use super::message::{Answer, Fault, FaultKind, Message, Opening, Request};
use super::site::{Site, Worker};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::interrupt::leave_at_once;
use crate::measure::{Interrupt, Unavailable};
use crate::model::Model;
use crate::units::Watts;

/// How often it is said that work goes on.
const BEAT: Duration = Duration::from_secs(1);

/// Works for whoever is at the other end of the pipes until they are closed: `plans` are what the command line stands for.
///
/// Ends the process if the pipe is closed while it works, since nobody wants to know any more.
///
/// # Errors
/// If the requests make no sense. What goes wrong with a variant is an answer.
pub fn serve(
    plans: &[Plan],
    device: &Device,
    faults: &Faults,
    input: impl BufRead + Send + 'static,
    output: impl Write + Send + 'static,
) -> Result<()> {
    let interrupt = Interrupt::new();
    let mouth = Mouth::new(output);
    let (sender, requests) = mpsc::channel();
    let (ear, busy) = (interrupt.clone(), mouth.busy.clone());
    thread::spawn(move || listen(input, &sender, &ear, &busy));
    beat(&mouth, &interrupt);
    let Ok(Request::Open(opening)) = requests.recv() else {
        return Err(Error::Internal("the first request opens nothing".into()));
    };
    match open(
        plans, device, faults, &opening, &interrupt, &requests, &mouth,
    ) {
        Err(error) => {
            let fault = Fault::from(error);
            mouth.say(&Message::Answer {
                answer: Answer::Failed { fault },
            });
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Says lines, whole ones, from any thread.
#[derive(Clone)]
struct Mouth {
    output: Arc<Mutex<dyn Write + Send>>,
    /// Whether a request is being worked on.
    busy: Arc<AtomicBool>,
}

impl Mouth {
    fn new(output: impl Write + Send + 'static) -> Self {
        Self {
            output: Arc::new(Mutex::new(output)),
            // The first request is on its way.
            busy: Arc::new(AtomicBool::new(true)),
        }
    }

    fn line(&self, line: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens any more: the other thread finds that out as well, and ends the process.
        let _ = writeln!(output, "{line}").and_then(|()| output.flush());
    }

    fn say(&self, message: &Message) {
        self.line(&serde_json::to_string(message).expect("plain data becomes JSON"));
    }

    /// Gives an answer that can be read back. JSON has no word for a number that is not finite, so a measurement that gave
    /// one has failed.
    fn answer(&self, answer: Answer) {
        let mut line = serde_json::to_string(&Message::Answer { answer });
        if let Some(why) = line
            .as_ref()
            .ok()
            .and_then(|line| serde_json::from_str::<Message>(line).err())
        {
            let fault = Fault::new(
                FaultKind::Internal,
                format!("a figure cannot be put on record: {why}"),
            );
            line = serde_json::to_string(&Message::Answer {
                answer: Answer::Failed { fault },
            });
        }
        self.line(&line.expect("plain data becomes JSON"));
    }
}

/// Passes requests on; those to stop and the end of them take effect at once.
fn listen(
    input: impl BufRead,
    requests: &Sender<Request>,
    interrupt: &Interrupt,
    busy: &AtomicBool,
) {
    for line in input.lines().map_while(|line| line.ok()) {
        match serde_json::from_str(&line) {
            Ok(Request::Stop) => interrupt.request(),
            Ok(request) => {
                busy.store(true, Ordering::SeqCst);
                if requests.send(request).is_err() {
                    return;
                }
            }
            // Whoever says this is not the program that this one belongs to.
            Err(_) => break,
        }
    }
    if busy.load(Ordering::SeqCst) {
        leave_at_once(Error::Interrupted.exit_code());
    }
}

/// Says from time to time that work goes on, as long as it does.
fn beat(mouth: &Mouth, interrupt: &Interrupt) {
    let (mouth, interrupt) = (mouth.clone(), interrupt.clone());
    thread::spawn(move || {
        let mut seen = 0;
        loop {
            thread::sleep(BEAT);
            let looks = interrupt.looks();
            if looks != seen {
                seen = looks;
                mouth.say(&Message::Alive);
            }
        }
    });
}

/// The variant that an opening means.
fn find<'a>(jobs: &'a [Job<'a>], plan: &Plan, opening: &Opening) -> Result<(&'a Job<'a>, usize)> {
    let job = jobs.get(opening.job);
    let job = job.ok_or_else(|| Error::Internal(format!("there is no variant {}", opening.job)))?;
    if job.keys(plan) != opening.keys {
        return Err(Error::Config(format!(
            "{} is no longer what it was when the run began: a file has changed",
            job.model.name
        )));
    }
    let before = jobs[..opening.job].iter();
    Ok((job, before.map(|job| job.points(plan).len()).sum()))
}

fn open(
    plans: &[Plan],
    device: &Device,
    faults: &Faults,
    opening: &Opening,
    interrupt: &Interrupt,
    requests: &Receiver<Request>,
    mouth: &Mouth,
) -> Result<()> {
    let plan = plans.get(opening.plan);
    let plan = plan.ok_or_else(|| Error::Internal(format!("there is no plan {}", opening.plan)))?;
    let models = plan
        .models
        .iter()
        .map(Model::open)
        .collect::<Result<Vec<_>>>()?;
    let environment = &opening.environment;
    let jobs = jobs(plan, device, environment, &models)?;
    let (job, points_before) = find(&jobs, plan, opening)?;
    let bare_idle = opening.bare_idle_watts.clone();
    let bare_idle = bare_idle.map(Watts).map_err(Unavailable::because);
    let ceilings = environment.ceilings.as_ref();
    let site = Site::new(plan, device, ceilings, bare_idle, interrupt);
    let mut worker = Worker::new(&site, job);
    mouth.busy.store(false, Ordering::SeqCst);
    mouth.answer(Answer::Done);
    let mut told = None;
    for request in requests {
        let struck = match request {
            Request::Measure { point } | Request::Turn { point, .. } => {
                faults.strike(points_before + point + 1, |line| mouth.line(line))
            }
            _ => Ok(()),
        };
        let answer = match struck {
            Err(fault) => Answer::Failed { fault },
            Ok(()) => worker.ask(&request, &mut |news| {
                // A long phase is told in steps of half a percent, so that telling costs nothing.
                let step = news.step();
                if step.is_none() || step != told {
                    told = step;
                    mouth.say(&Message::News(news));
                }
            }),
        };
        mouth.busy.store(false, Ordering::SeqCst);
        mouth.answer(answer);
    }
    Ok(())
}
