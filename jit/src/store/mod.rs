//! The code cache: translations on disk, so that a later run of the same program starts with them.
//!
//! One file holds what was translated, and copied, of one program under one [`Key`]. An engine reads it whole when the program starts,
//! takes a region or a copy in when the program first comes to its entry and the guest's bytes are those it was made from, and writes a new
//! file when it has translated enough that was not in the old one.
//!
//! Invariants:
//! 1. A file is executable content. It is used only if it is a regular file that belongs to the user, that nobody else may
//!    write, in a folder of which the same is true. Whoever can write the user's own files can run code as the user anyway, so
//!    this, and checksums against damage ([`file`]), are enough.
//! 2. A file is never changed, only replaced by a rename: whoever has read it has read one writer's whole file. No lock is taken.
//! 3. Numbers of exit slots and of instructions for helpers are in the code. So regions of one file have distinct numbers, an
//!    engine keeps them, and gives out larger ones. An engine that can't (its buffer was emptied) has no store any more.
//! 4. Whatever goes wrong here costs a translation, never a run: it is logged, and the region is made anew.

pub(crate) mod copies;
pub(crate) mod file;
pub(crate) mod key;
pub(crate) mod sites;

use crate::compile::SLOTS;
use file::{Contents, Image};
use key::Key;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Most bytes of one file; one that has grown larger is begun anew.
const MOST_BYTES: u64 = 64 << 20;
/// Of the numbers that an engine can give out, so many may be taken by a file.
const MOST_NUMBERS: u32 = SLOTS as u32 / 2;
/// A file that was used has its time of change renewed once it is older than this: the oldest go first.
const RENEWED: Duration = Duration::from_secs(24 * 3600);
/// Temporary files older than this were left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);
/// How files of the cache end.
const ENDING: &str = ".code";
/// How temporary files begin.
const TEMPORARY: &str = ".sevlab-";

/// A folder of cache files, and what this process has read of it.
#[derive(Debug)]
pub struct CodeCache {
    dir: PathBuf,
    limit: u64,
    /// The file read last: a program's threads use the same.
    last: Mutex<Option<(Key, Arc<Image>)>>,
}

impl PartialEq for CodeCache {
    fn eq(&self, other: &Self) -> bool {
        (&self.dir, self.limit) == (&other.dir, other.limit)
    }
}

impl Eq for CodeCache {}

/// Why a file or folder is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Host(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] file::Refused),
    #[error("not {0}, or it belongs to another user, or others may write it")]
    Owner(&'static str),
    #[error("full")]
    Full,
}

/// Whether only this user can have changed what `m` is of.
fn own(m: &Metadata) -> bool {
    #[allow(unsafe_code)] // a call of the C library
    // SAFETY: no arguments, no failure.
    let user = unsafe { libc::geteuid() };
    m.uid() == user && m.mode() & 0o022 == 0
}

impl CodeCache {
    /// A cache in folder `dir`, which is made when first written to, of at most `limit` bytes.
    #[must_use]
    pub fn new(dir: PathBuf, limit: u64) -> Self {
        Self {
            dir,
            limit,
            last: Mutex::new(None),
        }
    }

    /// The folder that is used if none is named: `sevlab/code` in the user's folder for caches. None if there is no such folder.
    #[must_use]
    pub fn usual_dir() -> Option<PathBuf> {
        // The XDG base directory specification: a relative path is as good as none.
        let named = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let base = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?;
        Some(base.join("sevlab/code"))
    }

    /// The file of a key. None if there is none that can be used.
    fn open(&self, key: &Key, name: &str) -> Option<Arc<Image>> {
        // A clone of the host process may find this locked for ever.
        let mut last = self.last.try_lock();
        if let Ok(Some((of, image))) = last.as_deref()
            && of == key
        {
            return Some(Arc::clone(image));
        }
        match self.read(key, name) {
            Ok(image) => {
                let image = Arc::new(image);
                if let Ok(last) = last.as_deref_mut() {
                    *last = Some((*key, Arc::clone(&image)));
                }
                Some(image)
            }
            Err(Unusable::Host(e)) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                let path = self.dir.join(name);
                tracing::warn!(target: "sevlab::jit", path = %path.display(), error = %e, "code cache file refused");
                None
            }
        }
    }

    /// The open file of a name, if it may be used.
    fn opened(&self, name: &str) -> Result<(File, Metadata), Unusable> {
        let dir = fs::metadata(&self.dir)?;
        if !dir.is_dir() || !own(&dir) {
            return Err(Unusable::Owner("a folder"));
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.dir.join(name))?;
        let meta = file.metadata()?;
        if !meta.is_file() || !own(&meta) {
            return Err(Unusable::Owner("a file"));
        }
        Ok((file, meta))
    }

    fn read(&self, key: &Key, name: &str) -> Result<Image, Unusable> {
        let (file, meta) = self.opened(name)?;
        if meta.len() > MOST_BYTES {
            return Err(Unusable::Full);
        }
        let mut bytes = Vec::with_capacity(meta.len() as usize);
        (&file).take(MOST_BYTES).read_to_end(&mut bytes)?;
        let image = Image::parse(bytes, key)?;
        if image.slots > MOST_NUMBERS || image.steps > MOST_NUMBERS {
            return Err(Unusable::Full);
        }
        let now = SystemTime::now();
        let age = meta
            .modified()
            .ok()
            .and_then(|t| now.duration_since(t).ok());
        if age.is_some_and(|age| age > RENEWED) {
            // If that fails the file goes earlier than it had to.
            let _ = file.set_modified(now);
        }
        Ok(image)
    }

    /// Writes the file of a key, unless another process has written a better one since `base` was read.
    fn write(&self, store: &Store, contents: Contents<'_>) -> Result<(), Unusable> {
        let key = &store.key;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)?;
        let dir = fs::metadata(&self.dir)?;
        if !own(&dir) {
            return Err(Unusable::Owner("a folder"));
        }
        if let Ok((mut there, _)) = self.opened(&store.name) {
            let mut head = [0; file::HEADER];
            let base = store.image.as_ref().map(|image| image.check);
            if there.read_exact(&mut head).is_ok()
                && let Some((check, records)) = file::peek(&head, key)
                && Some(check) != base
                && records as usize >= contents.regions.len() + contents.copies.len()
                && self.read(key, &store.name).is_ok()
            {
                return Ok(());
            }
        }
        let bytes = contents.encode(key);
        let mut new = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(&self.dir)?;
        new.write_all(&bytes)?;
        new.persist(self.dir.join(&store.name))
            .map_err(|e| e.error)?;
        if let Ok(mut last) = self.last.try_lock() {
            *last = None;
        }
        self.trim(&store.name)?;
        Ok(())
    }

    /// Removes the oldest files until what is left is within the limit; `newest` was written just now.
    fn trim(&self, newest: &str) -> io::Result<()> {
        let now = SystemTime::now();
        let (mut files, mut total) = (Vec::new(), 0);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Another process may have removed it.
            let Ok(meta) = entry.metadata() else { continue };
            let time = meta.modified().unwrap_or(now);
            if name.ends_with(ENDING) && meta.is_file() {
                total += meta.len();
                if name != newest {
                    files.push((time, meta.len(), entry.path()));
                }
            } else if name.starts_with(TEMPORARY)
                && now.duration_since(time).is_ok_and(|age| age > ABANDONED)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        files.sort_unstable();
        for (_, bytes, path) in files {
            if total <= self.limit {
                break;
            }
            let _ = fs::remove_file(path);
            total -= bytes;
        }
        if total > self.limit {
            fs::remove_file(self.dir.join(newest))?;
        }
        Ok(())
    }
}

/// What an engine has of the cache: the file of the program that it runs.
pub(crate) struct Store {
    cache: Arc<CodeCache>,
    key: Key,
    name: String,
    /// The file's content; None: there is none.
    pub image: Option<Arc<Image>>,
}

impl Store {
    /// The store of a program. None if it can't have one.
    pub(crate) fn open(cache: &Arc<CodeCache>, key: Option<Key>, program: &Path) -> Option<Self> {
        let key = key?;
        let name = key.file_name(program);
        let image = cache.open(&key, &name);
        Some(Self {
            cache: Arc::clone(cache),
            key,
            name,
            image,
        })
    }

    /// Replaces the file.
    pub(crate) fn write(&self, contents: Contents<'_>) {
        if let Err(e) = self.cache.write(self, contents) {
            let path = self.cache.dir.join(&self.name);
            tracing::warn!(target: "sevlab::jit", path = %path.display(), error = %e, "code cache file not written");
        }
    }
}
