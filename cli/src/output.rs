//! Files that a run leaves behind: whole, or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A result's file. It is checked before the guest starts, and opened only when the guest has ended: descriptors are
/// the guest's until then.
#[derive(Debug)]
pub struct Output {
    option: &'static str,
    path: PathBuf,
    /// A device or pipe is written in place.
    in_place: bool,
}

impl Output {
    /// The file that `option` names, if it can be written.
    pub fn new(option: &'static str, path: &Path) -> Result<Self, Failure> {
        let fail = |source| Failure::Output {
            option,
            path: path.to_owned(),
            source,
        };
        let in_place = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            Ok(meta) => !meta.is_file(),
            Err(_) => false,
        };
        // The guest may change the working directory, which is this process's. Links are followed, not replaced.
        let absolute = fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .map_err(fail)?;
        let output = Self {
            option,
            path: absolute,
            in_place,
        };
        if !in_place {
            let probe = output.temporary();
            create(&probe)
                .and_then(|_| fs::remove_file(&probe))
                .map_err(fail)?;
        }
        Ok(output)
    }

    /// Has `write` fill the file; it gets its name only when all of it is there.
    pub fn write(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Failure> {
        self.try_write(write).map_err(|source| Failure::Output {
            option: self.option,
            path: self.path.clone(),
            source,
        })
    }

    /// Whether the file can have holes.
    pub fn is_regular(&self) -> bool {
        !self.in_place
    }

    fn try_write(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        if self.in_place {
            let mut file = OpenOptions::new().write(true).open(&self.path)?;
            write(&mut file)?;
            return file.flush();
        }
        let temporary = self.temporary();
        let done = create(&temporary).and_then(|mut file| {
            write(&mut file)?;
            file.flush()?;
            fs::rename(&temporary, &self.path)
        });
        if done.is_err() {
            // What is half written is of no use to anyone.
            let _ = fs::remove_file(&temporary);
        }
        done
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        self.path.with_file_name(name)
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}
