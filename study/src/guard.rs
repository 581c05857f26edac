//! A process beside the study that ends what the study has started if the study itself is killed: a run dies with its parent
//! (`PR_SET_PDEATHSIG`), the processes that a guest has forked do not.
//!
//! The study tells it process groups over a pipe, `+LEADER` and `-LEADER`, a line each; at the pipe's end it kills those that
//! are left.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use crate::os;

/// The hidden subcommand that is the other process.
pub const COMMAND: &str = "study-guard";

/// The study's end of the pipe.
#[derive(Debug)]
pub struct Guard {
    pipe: Mutex<Option<ChildStdin>>,
    child: Mutex<Child>,
}

impl Guard {
    /// Starts the process.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        os::in_own_session(&mut command);
        let mut child = command.spawn()?;
        Ok(Self {
            pipe: Mutex::new(child.stdin.take()),
            child: Mutex::new(child),
        })
    }

    /// A run has begun.
    pub fn began(&self, leader: u32) {
        self.tell('+', leader);
    }

    /// A run has ended, and its process group with it.
    pub fn ended(&self, leader: u32) {
        self.tell('-', leader);
    }

    fn tell(&self, sign: char, leader: u32) {
        if let Ok(mut pipe) = self.pipe.lock()
            && let Some(pipe) = pipe.as_mut()
        {
            // Without a guard a study is as good, but for what happens if it is killed.
            let _ = pipe.write_all(format!("{sign}{leader}\n").as_bytes());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(mut pipe) = self.pipe.lock() {
            pipe.take();
        }
        if let Ok(mut child) = self.child.lock() {
            let _ = child.wait();
        }
    }
}

/// What the other process does.
pub fn serve(from: impl BufRead) {
    let mut groups = BTreeSet::new();
    for line in from.lines() {
        let Ok(line) = line else { break };
        let Ok(leader) = line.get(1..).unwrap_or_default().parse::<u32>() else {
            continue;
        };
        match line.as_bytes()[0] {
            b'+' => groups.insert(leader),
            b'-' => groups.remove(&leader),
            _ => continue,
        };
    }
    for leader in groups {
        os::kill_group(leader);
    }
}
