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

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::Kernel;
use super::elf::{self, Elf, ElfError};
use super::error::{Errno, Error};
use super::mm::{AddressSpace, Backing, Hw, MMAP_MIN, MMAP_TOP, Prot, USER_END, Vma, write_run};
use super::outside::WindowCall;
use super::sigframe::FRAME_MAX;
use super::stack::{self, Start, at};

/// Where a position-independent program is loaded.
const PIE_BASE: u64 = 0x5555_5555_4000;
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
    fn flush(&mut self) {}
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

/// Lays out a process guest.
///
/// # Errors
/// A file can't be read, is no program, or the memory is too small.
pub fn build(config: &ImageConfig) -> Result<Image, Error> {
    let (exe, argv, bytes) = resolve_script(config)?;
    let program = elf::parse(&exe.to_string_lossy(), &bytes)?;
    let have = config.memory.end.0.saturating_sub(config.memory.start.0);
    let c_mask = config.c_bit.map_or(0, |bit| 1u64 << bit.min(51));
    let mut hw = Pages::default();
    let mut mm = AddressSpace::new(&mut hw, config.memory.clone(), c_mask)?;
    mm.use_window(config.window.clone());
    mm.stack_limit = config
        .stack_limit
        .clamp(PAGE_SIZE * 64, USER_END - MMAP_TOP - (1 << 21));

    let bias = if program.relocatable {
        PIE_BASE
            .next_multiple_of(program.align)
            .wrapping_sub(program.start())
    } else {
        0
    };
    let mut loader = Loader {
        hw: &mut hw,
        mm: &mut mm,
        have,
    };
    loader.load(&exe, &program, &bytes, bias)?;
    let mut entry = program.entry.wrapping_add(bias);
    let mut base = 0;
    if let Some(path) = &program.interpreter {
        let path = Path::new(path);
        let bytes = read(path)?;
        let interpreter = elf::parse(&path.to_string_lossy(), &bytes)?;
        if interpreter.relocatable {
            let len = interpreter.end() - interpreter.start();
            let at = loader
                .mm
                .areas()
                .gap_below(MMAP_TOP, MMAP_MIN, len + interpreter.align);
            let at = at.ok_or(Error::OutOfMemory {
                have,
                what: "the interpreter",
            })?;
            base = at
                .next_multiple_of(interpreter.align)
                .wrapping_sub(interpreter.start());
        }
        loader.load(path, &interpreter, &bytes, base)?;
        entry = interpreter.entry.wrapping_add(base);
    }
    let brk = program.end().wrapping_add(bias);
    mm.set_brk_start(brk);

    let (uid, gid) = fs::metadata("/proc/self").map_or((0, 0), |m| (m.uid(), m.gid()));
    let phdr = if program.phdr == 0 {
        0
    } else {
        program.phdr.wrapping_add(bias)
    };
    let auxv = [
        (at::HWCAP, u64::from(config.hwcap)),
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
        (at::HWCAP2, u64::from(config.hwcap2)),
        (at::MINSIGSTKSZ, FRAME_MAX),
    ];
    let stack = stack::build(&Start {
        argv: &argv,
        envp: &config.envp,
        exec_fn: exe.as_os_str().as_bytes(),
        random: config.random,
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
    let low = ((stack.rsp & !(PAGE_SIZE - 1)) - (128 << 10)).max(USER_END - mm.stack_limit);
    let area = Vma {
        end: USER_END,
        prot: stack_prot,
        shared: false,
        backing: Backing::Stack,
    };
    mm.reserve(low, area).map_err(|_| Error::OutOfMemory {
        have,
        what: "the stack",
    })?;
    if !mm.populate(&mut hw, stack.rsp, &stack.bytes)? {
        return Err(Error::OutOfMemory {
            have,
            what: "the stack",
        });
    }

    mm.frames_mut()
        .set_accepted(hw.map.keys().map(|pfn| Gpa(pfn * PAGE_SIZE)));
    let cr3 = mm.cr3();
    let exe = fs::canonicalize(&exe).unwrap_or(exe);
    let kernel = Kernel::new(mm, exe, argv, config.envp.clone(), stack.auxv);
    let mut pages: Vec<ImagePage> = hw
        .map
        .into_iter()
        .map(|(pfn, page)| (Gpa(pfn * PAGE_SIZE), page))
        .collect();
    pages.sort_unstable_by_key(|(gpa, _)| *gpa);
    Ok(Image {
        pages,
        cr3,
        rip: entry,
        rsp: stack.rsp,
        kernel,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// A program's path, arguments and contents.
type Resolved = (PathBuf, Vec<Vec<u8>>, Vec<u8>);

/// The program that really runs, with its arguments and contents: follows `#!` lines.
fn resolve_script(config: &ImageConfig) -> Result<Resolved, Error> {
    let (mut exe, mut argv) = (config.exe.clone(), config.argv.clone());
    if argv.is_empty() {
        argv.push(exe.as_os_str().as_bytes().to_vec());
    }
    for _ in 0..SCRIPT_DEPTH {
        let bytes = read(&exe)?;
        let Some(line) = bytes.strip_prefix(b"#!") else {
            return Ok((exe, argv, bytes));
        };
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
    hw: &'a mut Pages,
    mm: &'a mut AddressSpace,
    have: u64,
}

impl Loader<'_> {
    /// Maps and fills the segments of a file, moved by `bias`.
    fn load(&mut self, path: &Path, elf: &Elf, bytes: &[u8], bias: u64) -> Result<(), Error> {
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
            if low < MMAP_MIN || end > MMAP_TOP {
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
            let backing = Backing::Anon("");
            if low < end {
                let area = Vma {
                    end,
                    prot: s.prot,
                    shared: false,
                    backing,
                };
                self.mm
                    .reserve(low, area)
                    .map_err(|_| overlap(format!("{start:#x} overlaps another mapping")))?;
            }
            mapped = end;
            // parse() has checked the range
            let from = (s.offset as usize).min(bytes.len());
            let to = (s.offset + s.filesz).min(bytes.len() as u64) as usize;
            if !self.mm.populate(self.hw, start, &bytes[from..to])? {
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
