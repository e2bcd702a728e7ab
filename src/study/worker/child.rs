//! A worker in a child process: starting it, asking it, noticing its end, and saying why it ended.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child as Process, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Hand;
use super::message::{Answer, Fault, FaultKind, Message, News, Request};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::measure::interrupt::signal_name;
use crate::units::Seconds;

/// How often it is looked whether the user wants to stop.
const TICK: Duration = Duration::from_millis(20);
/// How long a child that has nothing to do may take to end.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest line that is an answer: samples of a long cell take a few MB.
const LONGEST: u64 = 1 << 28;
/// Lines of a child's last words that are kept, so many that a backtrace does not push out what it is of, and how many of
/// them are told.
const KEPT: usize = 1000;
const TOLD: usize = 3;
/// Characters of them that are told.
const TOLD_CHARS: usize = 400;

/// How to start a child.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program: this one.
    pub program: PathBuf,
    /// The name that it is told it has.
    pub name: OsString,
    /// The command line that makes it [`serve`](super::serve()) the same plans.
    pub arguments: Vec<OsString>,
    /// How long it may give no sign of life.
    pub patience: Seconds,
}

impl Launch {
    fn start(&self) -> std::io::Result<Process> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // Ctrl-C goes to the group of a terminal: the run decides what becomes of its children.
            command.arg0(&self.name).process_group(0);
        }
        command.spawn()
    }
}

/// A child process with a worker in it. Ends with this value.
pub(in crate::study) struct Child {
    process: Process,
    /// Closed when the child is to end.
    to: Option<ChildStdin>,
    from: Receiver<Result<Message, String>>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    listener: Option<JoinHandle<()>>,
    patience: Duration,
    interrupt: Interrupt,
    told_to_stop: bool,
}

impl Child {
    /// Starts a child.
    ///
    /// # Errors
    /// If the system does not start it.
    pub(in crate::study) fn start(launch: &Launch, interrupt: &Interrupt) -> Result<Self> {
        let mut process = launch
            .start()
            .map_err(|e| Error::Internal(format!("cannot start a child process: {e}")))?;
        let lost = || Error::Internal("a child process came without its pipes".into());
        let to = process.stdin.take().ok_or_else(lost)?;
        let answers = process.stdout.take().ok_or_else(lost)?;
        let words = process.stderr.take().ok_or_else(lost)?;
        let (sender, from) = mpsc::channel();
        thread::spawn(move || read_messages(answers, &sender));
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last_words);
        let listener = thread::spawn(move || keep_last(words, &kept));
        Ok(Self {
            process,
            to: Some(to),
            from,
            last_words,
            listener: Some(listener),
            patience: Duration::try_from_secs_f64(launch.patience.0).unwrap_or(Duration::MAX),
            interrupt: interrupt.clone(),
            told_to_stop: false,
        })
    }

    /// Whether the request went into the pipe.
    fn send(&mut self, request: &Request) -> bool {
        let line = serde_json::to_string(request).expect("plain data becomes JSON");
        let Some(to) = &mut self.to else {
            return false;
        };
        writeln!(to, "{line}").and_then(|()| to.flush()).is_ok()
    }

    fn wait_for_answer(&mut self, tell: &mut dyn FnMut(News)) -> Result<Answer, Fault> {
        let mut silent = Duration::ZERO;
        loop {
            match self.from.recv_timeout(TICK) {
                Ok(Ok(Message::Answer { answer })) => return Ok(answer),
                Ok(Ok(Message::News(news))) => {
                    silent = Duration::ZERO;
                    tell(news);
                }
                Ok(Ok(Message::Alive)) => silent = Duration::ZERO,
                Ok(Err(what)) => {
                    self.kill();
                    return Err(Fault::lost(format!(
                        "the process gave an answer that is none: {what}"
                    )));
                }
                Err(RecvTimeoutError::Timeout) => silent += TICK,
                Err(RecvTimeoutError::Disconnected) => return Err(self.post_mortem()),
            }
            if self.interrupt.is_aborted() {
                self.kill();
                return Err(Error::Interrupted.into());
            }
            if self.interrupt.is_requested() && !self.told_to_stop {
                self.told_to_stop = true;
                self.send(&Request::Stop);
            }
            if silent >= self.patience {
                self.kill();
                let limit = Seconds(self.patience.as_secs_f64());
                return Err(Fault::lost(format!(
                    "hung: no sign of life for {limit} (--hang-limit), so its process was ended"
                )));
            }
        }
    }

    /// Why the child ended without an answer.
    fn post_mortem(&mut self) -> Fault {
        self.kill_unless_ended();
        let status = self.process.wait();
        // After the last words, the pipe is closed and the listener at its end.
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let words = self.last_words.lock();
        let words = words.unwrap_or_else(PoisonError::into_inner);
        cause_of_death(status.ok(), words.iter().map(String::as_str))
    }

    /// A child that closed its pipe but did not end is not waited for without end.
    fn kill_unless_ended(&mut self) {
        let ended = |process: &mut Process| !matches!(process.try_wait(), Ok(None));
        for _ in 0..FAREWELL.as_millis() / TICK.as_millis() {
            if ended(&mut self.process) {
                return;
            }
            thread::sleep(TICK);
        }
        self.kill();
    }

    fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Hand for Child {
    fn ask(&mut self, request: &Request, tell: &mut dyn FnMut(News)) -> Answer {
        let answer = match self.send(request) {
            true => self.wait_for_answer(tell),
            false => Err(self.post_mortem()),
        };
        answer.unwrap_or_else(|fault| Answer::Failed { fault })
    }

    fn process(&mut self) -> Option<u32> {
        let runs = matches!(self.process.try_wait(), Ok(None));
        runs.then(|| self.process.id())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // At the end of its requests an idle child leaves by itself, in order.
        self.to = None;
        self.kill_unless_ended();
    }
}

/// Reads messages until the pipe is closed or something else comes, which is told.
fn read_messages(pipe: impl Read, to: &Sender<Result<Message, String>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match pipe.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let message = serde_json::from_slice(&line);
        let is_none = message.is_err();
        let message = message.map_err(|why| {
            let text: String = String::from_utf8_lossy(&line).chars().take(80).collect();
            format!("'{}' ({why})", text.trim_end())
        });
        if to.send(message).is_err() || is_none {
            return;
        }
    }
}

/// Keeps the last lines of what is said until the pipe is closed.
fn keep_last(pipe: impl Read, kept: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(pipe)
        .split(b'\n')
        .map_while(|line| line.ok())
    {
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

/// Why a process ended, in words, by how it did and what it said last.
fn cause_of_death<'a>(status: Option<ExitStatus>, words: impl Iterator<Item = &'a str>) -> Fault {
    // What is said of how to be told more is said to nobody here.
    let worth = |line: &&str| !line.is_empty() && !line.starts_with("note: run with");
    let words: Vec<&str> = words.filter(worth).collect();
    // Of a panic, what comes first counts, and a backtrace follows; of everything else, what comes last.
    let panic = words.iter().position(|line| line.contains("panicked at"));
    let last = match panic {
        Some(at) => words[at..].iter().take(2).copied().collect(),
        None => words[words.len().saturating_sub(TOLD)..].to_vec(),
    };
    let said: String = last.join(" | ").chars().take(TOLD_CHARS).collect();
    let how = match (status.and_then(killed_by), status.and_then(|s| s.code())) {
        (Some(signal), _) => format!("the process was ended by {signal}"),
        (None, Some(code)) => format!("the process ended with exit code {code}"),
        (None, None) => "the process ended".to_owned(),
    };
    let text = match said.is_empty() {
        true => how,
        false => format!("{how}: {said}"),
    };
    // Rust's word for an allocation that the system refused, after which it aborts.
    if said.contains("memory allocation of") {
        return Fault::new(FaultKind::OutOfMemory, text);
    }
    Fault::lost(text)
}

#[cfg(unix)]
fn killed_by(status: ExitStatus) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    status.signal().map(signal_name)
}

#[cfg(not(unix))]
fn killed_by(_: ExitStatus) -> Option<String> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A child that does what a shell does with this script.
    fn start(script: &str, patience: f64) -> Child {
        let launch = Launch {
            program: PathBuf::from("/bin/sh"),
            name: OsString::from("sh"),
            arguments: vec![OsString::from("-c"), OsString::from(script)],
            patience: Seconds(patience),
        };
        Child::start(&launch, &Interrupt::new()).unwrap()
    }

    /// What such a child answers to one request.
    fn ask(script: &str, patience: f64) -> (Answer, Vec<News>) {
        let mut child = start(script, patience);
        let mut news = Vec::new();
        let answer = child.ask(&Request::Load, &mut |one| news.push(one));
        (answer, news)
    }

    fn fault(script: &str, patience: f64) -> Fault {
        match ask(script, patience).0 {
            Answer::Failed { fault } => fault,
            other => panic!("{other:?}"),
        }
    }

    const DONE: &str = r#"echo '{"say":"answer","answer":{"answer":"done"}}'"#;

    #[test]
    fn news_come_before_the_answer() {
        let note = r#"echo '{"say":"news","news":"note","text":"half"}'"#;
        let (answer, news) = ask(&format!("read r; {note}; {DONE}"), 60.0);
        assert!(matches!(answer, Answer::Done));
        let text = "half".to_owned();
        assert_eq!(news, [News::Note { text }]);
    }

    #[test]
    fn a_child_is_a_process_until_it_ends() {
        let mut child = start(&format!("read r; {DONE}; read r"), 60.0);
        let process = child.process().unwrap();
        assert_ne!(process, std::process::id());
        assert!(matches!(
            child.ask(&Request::Load, &mut |_| ()),
            Answer::Done
        ));
        assert_eq!(child.process(), Some(process));
        child.kill();
        assert_eq!(child.process(), None);
    }

    #[test]
    fn the_end_of_a_child_is_told_with_its_last_words() {
        let fault = fault("read r; echo one >&2; echo two >&2; exit 7", 60.0);
        assert_eq!(fault.kind, FaultKind::Lost);
        let told = fault.to_string();
        assert!(told.contains("exit code 7: one | two"), "{told}");
        let panic = "echo \"thread 'main' panicked at src/a.rs:1:1:\"; echo oh; echo; echo 1: main; echo 2: run; echo 3: go";
        let told = self::fault(&format!("read r; {{ {panic}; }} >&2; exit 101"), 60.0).to_string();
        assert!(told.ends_with("src/a.rs:1:1: | oh"), "{told}");
        let killed = self::fault("read r; kill -SEGV $$", 60.0).to_string();
        assert!(killed.contains("SIGSEGV"), "{killed}");
    }

    #[test]
    fn an_allocation_that_the_host_refused_is_want_of_memory() {
        let script = "read r; echo 'memory allocation of 8 bytes failed' >&2; kill -ABRT $$";
        assert_eq!(fault(script, 60.0).kind, FaultKind::OutOfMemory);
    }

    #[test]
    fn what_is_no_message_ends_the_child() {
        let told = fault("read r; echo nonsense; exec sleep 60", 60.0).to_string();
        assert!(told.contains("'nonsense'"), "{told}");
        let cut = fault(r#"read r; printf '{"say":"al'"#, 60.0);
        assert_eq!(cut.kind, FaultKind::Lost);
    }

    #[test]
    fn silence_ends_the_child_and_a_sign_of_life_does_not() {
        let told = fault("read r; exec sleep 60", 0.1).to_string();
        assert!(told.contains("--hang-limit"), "{told}");
        let beat = r#"sleep 0.2; echo '{"say":"alive"}'"#;
        let (answer, _) = ask(&format!("read r; {beat}; {beat}; {beat}; {DONE}"), 0.4);
        assert!(matches!(answer, Answer::Done));
    }
}
