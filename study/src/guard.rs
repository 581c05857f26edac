//! A process beside the study that ends what the study has started if the study itself is killed: a run dies with its parent
//! (`PR_SET_PDEATHSIG`), the processes that a guest has forked do not.
//!
//! The study tells it process groups and their working directories over a pipe, `+LEADER DIRECTORY` and `-LEADER`, a line each;
//! at the pipe's end it kills the groups that are left, and removes their directories.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

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
    pub fn began(&self, leader: u32, work: &Path) {
        self.tell(&format!("+{leader} {}\n", work.display()));
    }

    /// A run has ended, and its process group with it.
    pub fn ended(&self, leader: u32) {
        self.tell(&format!("-{leader}\n"));
    }

    fn tell(&self, line: &str) {
        if let Ok(mut pipe) = self.pipe.lock()
            && let Some(pipe) = pipe.as_mut()
        {
            // Without a guard a study is as good, but for what happens if it is killed.
            let _ = pipe.write_all(line.as_bytes());
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
    let mut groups = BTreeMap::new();
    for line in from.lines() {
        let Ok(line) = line else { break };
        let (sign, rest) = line.split_at_checked(1).unwrap_or_default();
        let (leader, work) = rest.split_once(' ').unwrap_or((rest, ""));
        let Ok(leader) = leader.parse::<u32>() else {
            continue;
        };
        match sign {
            "+" => groups.insert(leader, work.to_owned()),
            _ => groups.remove(&leader),
        };
    }
    for leader in groups.keys() {
        os::kill_group(*leader);
    }
    for work in groups.values().filter(|work| !work.is_empty()) {
        // The dead may still hold it for a moment.
        for _ in 0..20 {
            let gone = fs::remove_dir_all(work);
            if gone.is_ok() || gone.is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_what_is_left_are_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let [left, ended] = ["left", "ended"].map(|name| dir.path().join(name));
        for work in [&left, &ended] {
            fs::create_dir(work).expect("a folder");
        }
        // Groups that there are not: the highest number that a process can have is 2^22.
        let told = format!(
            "+4194400 {}\n+4194401 {}\n-4194401\nnonsense\n",
            left.display(),
            ended.display()
        );
        serve(told.as_bytes());
        assert!(!left.exists() && ended.exists());
    }
}
