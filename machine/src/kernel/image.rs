//! The image a process guest is launched from: every page that is there before the first instruction.
//!
//! The launch places (and measures) these pages; so the program, its interpreter, the first stack and
//! the page tables are all laid out here, by the same memory management that runs afterwards.

use core::ops::Range;
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::Kernel;
use super::elf::{self, Elf, ElfError};
use super::error::{Errno, Error};
use super::mm::{
    AddressSpace, Backing, File, Hw, MMAP_MIN, MMAP_TOP, Places, Prot, STACK_END, Vma, write_run,
};
use super::outside::WindowCall;
use super::sigframe::FRAME_MAX;
use super::stack::{self, Start, at};
/// Interpreters of scripts that may be nested.
const SCRIPT_DEPTH: usize = 5;

/// What a process guest is made from.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// Path of the program or script, for the host's file system.
    pub exe: PathBuf,
    /// Arguments; the first is the program's name.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value`.
    pub envp: Vec<Vec<u8>>,
    /// Guest-physical memory that the kernel may use; GHCB, bounce area, secrets and CPUID pages lie
    /// outside.
    pub memory: Range<Gpa>,
    /// Guest-physical addresses of the file window; empty if there is none.
    pub window: Range<Gpa>,
    /// Position of the C-bit; `None` if guest memory is not encrypted.
    pub c_bit: Option<u32>,
    /// Soft limit of the stack, bytes.
    pub stack_limit: u64,
    /// `AT_RANDOM`.
    pub random: [u8; 16],
    /// `AT_HWCAP`: EDX of CPUID leaf 1.
    pub hwcap: u32,
    /// `AT_HWCAP2`: bit 1, FSGSBASE may be used.
    pub hwcap2: u32,
}

impl ImageConfig {
    /// A program with its arguments in `memory`, with defaults for the rest.
    #[must_use]
    pub fn new(exe: impl Into<PathBuf>, argv: Vec<Vec<u8>>, memory: Range<Gpa>) -> Self {
        Self {
            exe: exe.into(),
            argv,
            envp: Vec::new(),
            memory,
            window: Gpa(0)..Gpa(0),
            c_bit: None,
            stack_limit: 8 << 20,
            random: [0; 16],
            hwcap: 0x178b_fbff,
            hwcap2: 2,
        }
    }
}

/// A page to place at launch.
pub type ImagePage = (Gpa, Box<[u8; PAGE_SIZE as usize]>);

/// A process guest ready to be launched.
pub struct Image {
    /// All pages, in order of address.
    pub pages: Vec<ImagePage>,
    /// Initial CR3, with the C-bit if memory is encrypted.
    pub cr3: u64,
    /// Initial RIP.
    pub rip: u64,
    /// Initial RSP.
    pub rsp: u64,
    /// The kernel that will run it.
    pub kernel: Kernel,
}

/// Guest memory before there is a guest.
#[derive(Default)]
struct Pages {
    map: HashMap<u64, Box<[u8; PAGE_SIZE as usize]>>,
}

impl Pages {
    fn page(&mut self, gpa: Gpa) -> &mut [u8; PAGE_SIZE as usize] {
        self.map
            .entry(gpa.pfn())
            .or_insert_with(|| Box::new([0; PAGE_SIZE as usize]))
    }
}

impl Hw for Pages {
    fn read(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        out.copy_from_slice(&self.page(gpa)[at..at + out.len()]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let at = gpa.offset() as usize;
        self.page(gpa)[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&mut self, gpa: Gpa) -> Result<(), Error> {
        self.page(gpa).fill(0);
        Ok(())
    }
    fn accept(&mut self, _: Gpa, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn share(&mut self, _: Gpa, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn read_shared(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        self.read(gpa, out)
    }
    fn write_shared(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        self.write(gpa, data)
    }
    fn invalidate(&mut self, _: Va) {}
    fn flush(&mut self, _: Va, _: Va) {}
    fn drop_code(&mut self, _: Va, _: Va) {}
    fn pread(&mut self, _: i32, _: u64, _: &mut [u8]) -> Result<Result<usize, Errno>, Error> {
        Ok(Err(Errno::EBADF))
    }
    fn file_size(&mut self, _: i32) -> Result<u64, Error> {
        Ok(0)
    }
    fn close(&mut self, _: i32) -> Result<(), Error> {
        Ok(())
    }
    fn window(&mut self, _: &WindowCall) -> Result<Result<u64, Errno>, Error> {
        Ok(Err(Errno::ENODEV))
    }
}

/// What all programs of a machine start with alike.
#[derive(Clone, Debug)]
pub struct Template {
    /// Bytes of guest memory, for messages.
    have: u64,
    random: [u8; 16],
    hwcap: u32,
    hwcap2: u32,
}

impl Template {
    /// Sets `AT_RANDOM` of the next program.
    pub fn set_random(&mut self, random: [u8; 16]) {
        self.random = random;
    }
}

/// Where a program file's bytes come from.
pub enum Source {
    /// They are here.
    Bytes(Vec<u8>),
    /// A file that the guest kernel has open.
    File {
        /// It.
        file: Arc<File>,
        /// Its size in bytes.
        size: u64,
    },
}

impl Source {
    /// Closes the file, if nothing else uses it.
    fn close(self, hw: &mut dyn Hw) -> Result<(), Error> {
        match self {
            Self::File { file, .. } => match Arc::try_unwrap(file) {
                Ok(file) => hw.close(file.fd),
                Err(_) => Ok(()),
            },
            Self::Bytes(_) => Ok(()),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Exactly `len` bytes at `at`, or nothing.
    fn read(&self, hw: &mut dyn Hw, at: u64, len: u64) -> Result<Option<Vec<u8>>, Error> {
        if at.checked_add(len).is_none_or(|end| end > self.size()) {
            return Ok(None);
        }
        Ok(match self {
            Self::Bytes(bytes) => bytes
                .get(at as usize..(at + len) as usize)
                .map(<[u8]>::to_vec),
            Self::File { file, .. } => {
                let mut out = vec![0; len as usize];
                let got = hw.pread(file.fd, at, &mut out)?;
                (got == Ok(out.len())).then_some(out)
            }
        })
    }

    fn parse(&self, hw: &mut dyn Hw, path: &Path) -> Result<Elf, Error> {
        let mut failed = None;
        let mut read = |at, len| match self.read(hw, at, len) {
            Ok(bytes) => bytes,
            Err(e) => {
                failed = Some(e);
                None
            }
        };
        let elf = elf::parse_with(&path.to_string_lossy(), self.size(), &mut read);
        match failed {
            Some(e) => Err(e),
            None => Ok(elf?),
        }
    }
}

/// How files are opened by whoever loads a program.
pub type Open<'a> = dyn FnMut(&mut dyn Hw, &Path) -> Result<Source, Error> + 'a;

/// A program with all that it needs to start, found and checked; nothing is loaded yet.
pub struct Program {
    /// Path of the program file: of the interpreter, for a script.
    pub exe: PathBuf,
    /// Its arguments.
    pub argv: Vec<Vec<u8>>,
    elf: (Elf, Source),
    interpreter: Option<(PathBuf, Elf, Source)>,
}

/// A program in memory.
pub struct Loaded {
    /// Initial RIP.
    pub rip: u64,
    /// Initial RSP.
    pub rsp: u64,
    /// The auxiliary vector as it lies in memory.
    pub auxv: Vec<u8>,
}

/// Lays out a process guest.
///
/// # Errors
/// A file can't be read, is no program, or the memory is too small.
pub fn build(config: &ImageConfig) -> Result<Image, Error> {
    let have = config.memory.end.0.saturating_sub(config.memory.start.0);
    let c_mask = config.c_bit.map_or(0, |bit| 1u64 << bit.min(51));
    let template = Template {
        have,
        random: config.random,
        hwcap: config.hwcap,
        hwcap2: config.hwcap2,
    };
    let mut hw = Pages::default();
    let mut mm = AddressSpace::new(&mut hw, config.memory.clone(), c_mask)?;
    mm.use_window(config.window.clone());
    mm.stack_limit = config
        .stack_limit
        .clamp(PAGE_SIZE * 64, STACK_END - MMAP_TOP - (1 << 21));
    let mut open = |_: &mut dyn Hw, path: &Path| Ok(Source::Bytes(read(path)?));
    let program = Program::find(&mut hw, &config.exe, &config.argv, &mut open)?;
    let loaded = program.load(&mut hw, &mut mm, &config.envp, &template)?;

    mm.frames_mut()
        .set_accepted(hw.map.keys().map(|pfn| Gpa(pfn * PAGE_SIZE)));
    let cr3 = mm.cr3();
    let exe = fs::canonicalize(&program.exe).unwrap_or(program.exe);
    let envp = config.envp.clone();
    let kernel = Kernel::new(mm, exe, program.argv, envp, loaded.auxv, template);
    let mut pages: Vec<ImagePage> = hw
        .map
        .into_iter()
        .map(|(pfn, page)| (Gpa(pfn * PAGE_SIZE), page))
        .collect();
    pages.sort_unstable_by_key(|(gpa, _)| *gpa);
    Ok(Image {
        pages,
        cr3,
        rip: loaded.rip,
        rsp: loaded.rsp,
        kernel,
    })
}

impl Program {
    /// Finds the program that really runs when `exe` is executed, following `#!` lines, and its interpreter.
    ///
    /// # Errors
    /// A file can't be opened or is no program.
    pub fn find(
        hw: &mut dyn Hw,
        exe: &Path,
        argv: &[Vec<u8>],
        open: &mut Open<'_>,
    ) -> Result<Self, Error> {
        let (exe, argv, source) = resolve_script(hw, exe, argv, open)?;
        let program = source.parse(hw, &exe)?;
        let interpreter = match &program.interpreter {
            None => None,
            Some(path) => {
                let path = PathBuf::from(path);
                let source = open(hw, &path)?;
                let elf = source.parse(hw, &path)?;
                Some((path, elf, source))
            }
        };
        Ok(Self {
            exe,
            argv,
            elf: (program, source),
            interpreter,
        })
    }

    /// The program file's whole path, where a descriptor of it is open.
    #[must_use]
    pub fn real_path(&self) -> PathBuf {
        match &self.elf.1 {
            Source::File { file, .. } => PathBuf::from(&file.name),
            Source::Bytes(_) => self.exe.clone(),
        }
    }

    /// Loads the program into an empty address space.
    ///
    /// # Errors
    /// Its segments contradict each other, or the memory is too small.
    pub fn load(
        &self,
        hw: &mut dyn Hw,
        mm: &mut AddressSpace,
        envp: &[Vec<u8>],
        template: &Template,
    ) -> Result<Loaded, Error> {
        let have = template.have;
        let (program, source) = &self.elf;
        mm.places = if program.thread_sanitizer {
            Places::LINUX
        } else {
            Places::LOW
        };
        let bias = if program.relocatable {
            mm.places
                .pie_base
                .next_multiple_of(program.align)
                .wrapping_sub(program.start())
        } else {
            0
        };
        let mut loader = Loader { hw, mm, have };
        loader.load(&self.exe, program, source, bias)?;
        let mut entry = program.entry.wrapping_add(bias);
        let mut base = 0;
        if let Some((path, interpreter, source)) = &self.interpreter {
            if interpreter.relocatable {
                let len = interpreter.end() - interpreter.start();
                let at = loader.mm.areas().gap_below(
                    loader.mm.places.mmap_top,
                    MMAP_MIN,
                    len + interpreter.align,
                );
                let at = at.ok_or(Error::OutOfMemory {
                    have,
                    what: "the interpreter",
                })?;
                base = at
                    .next_multiple_of(interpreter.align)
                    .wrapping_sub(interpreter.start());
            }
            loader.load(path, interpreter, source, base)?;
            entry = interpreter.entry.wrapping_add(base);
        }
        mm.set_brk_start(program.end().wrapping_add(bias));
        let (rsp, auxv) = self.stack(hw, mm, envp, template, bias, base)?;
        Ok(Loaded {
            rip: entry,
            rsp,
            auxv,
        })
    }

    fn stack(
        &self,
        hw: &mut dyn Hw,
        mm: &mut AddressSpace,
        envp: &[Vec<u8>],
        template: &Template,
        bias: u64,
        base: u64,
    ) -> Result<(u64, Vec<u8>), Error> {
        let have = template.have;
        let program = &self.elf.0;
        let (uid, gid) = fs::metadata("/proc/self").map_or((0, 0), |m| (m.uid(), m.gid()));
        let phdr = if program.phdr == 0 {
            0
        } else {
            program.phdr.wrapping_add(bias)
        };
        let auxv = [
            (at::HWCAP, u64::from(template.hwcap)),
            (at::PAGESZ, PAGE_SIZE),
            (at::CLKTCK, 100),
            (at::PHDR, phdr),
            (at::PHENT, elf::PHENT as u64),
            (at::PHNUM, program.phnum),
            (at::BASE, base),
            (at::FLAGS, 0),
            (at::ENTRY, program.entry.wrapping_add(bias)),
            (at::UID, u64::from(uid)),
            (at::EUID, u64::from(uid)),
            (at::GID, u64::from(gid)),
            (at::EGID, u64::from(gid)),
            (at::SECURE, 0),
            (at::HWCAP2, u64::from(template.hwcap2)),
            (at::MINSIGSTKSZ, FRAME_MAX),
        ];
        let stack = stack::build(&Start {
            end: mm.places.stack_end,
            argv: &self.argv,
            envp,
            exec_fn: self.exe.as_os_str().as_bytes(),
            random: template.random,
            auxv: &auxv,
        });
        let used = stack.bytes.len() as u64;
        if used > mm.stack_limit / 4 {
            return Err(Error::OutOfMemory {
                have: mm.stack_limit,
                what: "arguments and environment",
            });
        }
        let stack_prot = Prot(if program.exec_stack { 7 } else { 3 });
        let low = ((stack.rsp & !(PAGE_SIZE - 1)) - (128 << 10))
            .max(mm.places.stack_end - mm.stack_limit);
        let area = Vma {
            end: mm.places.stack_end,
            prot: stack_prot,
            shared: false,
            backing: Backing::Stack,
        };
        let full = || Error::OutOfMemory {
            have,
            what: "the stack",
        };
        mm.reserve(low, area).map_err(|_| full())?;
        if !mm.populate(hw, stack.rsp, &stack.bytes)? {
            return Err(full());
        }
        Ok((stack.rsp, stack.auxv))
    }
}

/// A program file's bytes. What is no regular file is no program (execve(2), EACCES): reading it may never end.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let regular = fs::metadata(path).and_then(|m| match m.is_file() {
        true => Ok(()),
        false => Err(std::io::Error::from_raw_os_error(Errno::EACCES.0)),
    });
    regular
        .and_then(|()| fs::read(path))
        .map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })
}

/// A program's path, arguments and contents.
type Resolved = (PathBuf, Vec<Vec<u8>>, Source);

/// The program that really runs, with its arguments and contents: follows `#!` lines.
fn resolve_script(
    hw: &mut dyn Hw,
    exe: &Path,
    argv: &[Vec<u8>],
    open: &mut Open<'_>,
) -> Result<Resolved, Error> {
    let (mut exe, mut argv) = (exe.to_owned(), argv.to_vec());
    if argv.is_empty() {
        argv.push(exe.as_os_str().as_bytes().to_vec());
    }
    for _ in 0..SCRIPT_DEPTH {
        let source = open(hw, &exe)?;
        let head = source.size().min(256);
        let bytes = source.read(hw, 0, head)?.unwrap_or_default();
        let Some(line) = bytes.strip_prefix(b"#!") else {
            return Ok((exe, argv, source));
        };
        source.close(hw)?;
        let line = &line[..line.len().min(253)];
        let line = line
            .split(|b| *b == b'\n')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        let mut words = line.splitn(2, |b| matches!(b, b' ' | b'\t'));
        let interpreter = words.next().unwrap_or_default().to_vec();
        if interpreter.is_empty() {
            let file = exe.to_string_lossy().into_owned();
            return Err(ElfError {
                file,
                field: "#!",
                what: "no interpreter named".into(),
            }
            .into());
        }
        let mut new = vec![interpreter.clone()];
        new.extend(
            words
                .next()
                .map(|w| w.trim_ascii().to_vec())
                .filter(|w| !w.is_empty()),
        );
        new.push(exe.as_os_str().as_bytes().to_vec());
        new.extend(argv.into_iter().skip(1));
        argv = new;
        exe = PathBuf::from(std::ffi::OsString::from_vec(interpreter));
    }
    let file = exe.to_string_lossy().into_owned();
    Err(ElfError {
        file,
        field: "#!",
        what: "interpreters nested too deep".into(),
    }
    .into())
}

struct Loader<'a> {
    hw: &'a mut dyn Hw,
    mm: &'a mut AddressSpace,
    have: u64,
}

impl Loader<'_> {
    /// Maps the segments of a file, moved by `bias`: what is here is filled in now, what is in a file is
    /// brought in when it is touched.
    fn load(&mut self, path: &Path, elf: &Elf, source: &Source, bias: u64) -> Result<(), Error> {
        let overlap = |what: String| {
            let file = path.to_string_lossy().into_owned();
            Error::Elf(ElfError {
                file,
                field: "p_vaddr",
                what,
            })
        };
        let mut mapped = 0; // end of the pages mapped so far
        for s in &elf.segments {
            let start = s.vaddr.wrapping_add(bias);
            let end = (start + s.memsz).next_multiple_of(PAGE_SIZE);
            let mut low = start & !(PAGE_SIZE - 1);
            if low < MMAP_MIN || end > self.mm.places.mmap_top {
                return Err(overlap(format!("{start:#x} is no address for a program")));
            }
            // Bss of one segment and data of the next may share a page: the later segment's rights win.
            if low < mapped {
                let shared = low;
                self.mm
                    .protect(self.hw, shared, mapped, s.prot)
                    .map_err(|_| overlap(format!("{start:#x} overlaps another mapping")))?;
                low = mapped;
            }
            let free = |_| overlap(format!("{start:#x} overlaps another mapping"));
            let area = |end, backing| Vma {
                end,
                prot: s.prot,
                shared: false,
                backing,
            };
            let mut anon = low;
            let mut now = (s.offset, s.filesz);
            if let Source::File { file, .. } = source
                && low == start & !(PAGE_SIZE - 1)
                && s.filesz > 0
            {
                let file_end = start + s.filesz;
                anon = file_end.next_multiple_of(PAGE_SIZE);
                let backing = Backing::File {
                    file: Arc::clone(file),
                    offset: s.offset - start % PAGE_SIZE,
                };
                self.mm.reserve(low, area(anon, backing)).map_err(free)?;
                // Behind the file's bytes there are zeroes, not more of the file.
                let tail = file_end % PAGE_SIZE;
                now = (s.offset + s.filesz, 0);
                if s.memsz > s.filesz && tail != 0 {
                    let last = (file_end - tail).max(start);
                    now = (s.offset + (last - start), file_end - last);
                }
            }
            if anon < end {
                let backing = Backing::Anon("");
                self.mm.reserve(anon, area(end, backing)).map_err(free)?;
            }
            mapped = end;
            let (at, len) = now;
            let Some(bytes) = source.read(self.hw, at, len)? else {
                return Err(overlap(format!("{len} bytes at {at:#x} can't be read")));
            };
            let to = start + (at - s.offset);
            if !self.mm.populate(self.hw, to, &bytes)? {
                return Err(Error::OutOfMemory {
                    have: self.have,
                    what: "the program",
                });
            }
        }
        Ok(())
    }
}

impl Image {
    /// Writes all pages with `place`, for launches that take them one at a time.
    ///
    /// # Errors
    /// What `place` returns.
    pub fn place<E>(
        &self,
        mut place: impl FnMut(Gpa, &[u8; PAGE_SIZE as usize]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pages
            .iter()
            .try_for_each(|(gpa, page)| place(*gpa, page))
    }
}

/// Copies a whole image into memory that takes writes at guest-physical addresses.
///
/// # Errors
/// As [`Hw::write`].
pub fn copy_into(image: &Image, hw: &mut dyn Hw) -> Result<(), Error> {
    image.place(|gpa, page| write_run(hw, gpa, page))
}
