//! Results on disk: `results.jsonl`, a line for each run, in a folder that one process at a time writes to.
//!
//! 1. A line is written as a whole and reaches the disk before the run counts as done.
//! 2. A line that could not be written as a whole is taken back, so that the file ends with a whole line; if even that fails
//!    (a kill in the middle), the next start finds the torn line, moves it to `results.torn`, and makes the run again.
//! 3. A key has one line that stands. A later line of the same key (a run that was made again) takes the earlier's place.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::record::Record;

/// The results' file.
pub const RESULTS: &str = "results.jsonl";
/// Where torn lines go.
pub const TORN: &str = "results.torn";
/// The plan's file.
pub const PLAN: &str = "study.json";
const LOCK: &str = "lock";

/// A folder of results, held by this process.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
    /// Results by key.
    records: BTreeMap<String, Record>,
    /// Lines that were torn when the folder was opened.
    torn: usize,
    _lock: File,
}

impl Store {
    /// Opens a folder, makes it if it is not there, and reads what is in it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::file("making", dir))?;
        let lock = dir.join(LOCK);
        let mut held = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(Error::file("opening", &lock))?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = held.read_to_string(&mut text);
                return Err(Error::Busy {
                    dir: dir.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(Error::file("locking", &lock)(e)),
        }
        // Who it is, for the message above; of no other use, so a full disk does not matter here.
        let _ = held
            .set_len(0)
            .and_then(|()| writeln!(held, "{}", std::process::id()));
        let path = dir.join(RESULTS);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::file("opening", &path))?;
        let mut store = Self {
            dir: dir.to_owned(),
            file,
            len: 0,
            records: BTreeMap::new(),
            torn: 0,
            _lock: held,
        };
        store.read().map_err(Error::file("reading", &path))?;
        Ok(store)
    }

    /// Reads a folder's results without holding it; a line that is torn or being written is left out.
    pub fn look(dir: &Path) -> Result<BTreeMap<String, Record>, Error> {
        let path = dir.join(RESULTS);
        let bytes = fs::read(&path).map_err(Error::file("reading", &path))?;
        Ok(lines(&bytes)
            .filter_map(|line| parse(line.bytes))
            .map(|record| (record.key.clone(), record))
            .collect())
    }

    /// The results so far, by key.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<String, Record> {
        &self.records
    }

    /// How many lines were torn.
    #[must_use]
    pub fn torn(&self) -> usize {
        self.torn
    }

    /// Adds a result.
    pub fn add(&mut self, record: Record) -> Result<(), Error> {
        let path = self.dir.join(RESULTS);
        let mut line = serde_json::to_vec(&record)
            .map_err(|e| Error::file("writing", &path)(io::Error::other(e)))?;
        line.push(b'\n');
        let written = self
            .file
            .seek(SeekFrom::Start(self.len))
            .and_then(|_| self.file.write_all(&line))
            .and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            let _ = self.file.set_len(self.len);
            return Err(Error::file("writing", &path)(e));
        }
        self.len += line.len() as u64;
        self.records.insert(record.key.clone(), record);
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let mut good: Vec<&[u8]> = Vec::new();
        let mut torn: Vec<&[u8]> = Vec::new();
        for line in lines(&bytes) {
            match parse(line.bytes).filter(|_| line.whole) {
                Some(record) => {
                    good.push(line.bytes);
                    self.records.insert(record.key.clone(), record);
                }
                None => torn.push(line.bytes),
            }
        }
        let whole = good.iter().map(|l| l.len() as u64 + 1).sum::<u64>();
        if torn.is_empty() {
            self.len = whole;
            return Ok(());
        }
        self.torn = torn.len();
        let mut aside = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join(TORN))?;
        for line in &torn {
            aside.write_all(line)?;
            aside.write_all(b"\n")?;
        }
        aside.sync_data()?;
        if is_prefix(&bytes, &good) {
            // The usual case: only the end is torn.
            self.file.set_len(whole)?;
            self.file.sync_data()?;
        } else {
            let text: Vec<u8> = good
                .iter()
                .flat_map(|l| l.iter().copied().chain([b'\n']))
                .collect();
            replace(&self.dir.join(RESULTS), &text)?;
            self.file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.dir.join(RESULTS))?;
        }
        self.len = whole;
        Ok(())
    }
}

/// Whether the lines are how `bytes` begins.
fn is_prefix(bytes: &[u8], lines: &[&[u8]]) -> bool {
    let mut at = 0;
    lines.iter().all(|line| {
        let next = at + line.len() + 1;
        let same = bytes.get(at..next - 1) == Some(line) && bytes.get(next - 1) == Some(&b'\n');
        at = next;
        same
    })
}

struct Line<'a> {
    bytes: &'a [u8],
    /// Its end is there.
    whole: bool,
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    bytes
        .split_inclusive(|b| *b == b'\n')
        .map(|line| match line.strip_suffix(b"\n") {
            Some(bytes) => Line { bytes, whole: true },
            None => Line {
                bytes: line,
                whole: false,
            },
        })
}

fn parse(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(line).ok()
}

/// Writes a file as a whole, or leaves the one that is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let done = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_data()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests;
