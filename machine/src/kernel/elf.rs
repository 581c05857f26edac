//! ELF64 program files: a strict reader. It looks at program headers only, and never past the file.

use super::mm::{Prot, USER_END};

/// Why a file is not a program that can run. Names the file and the field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}: not a runnable x86-64 ELF program: {field}: {what}")]
pub struct ElfError {
    /// The file, as it was named.
    pub file: String,
    /// The field of the header or program header that is wrong.
    pub field: &'static str,
    /// What is wrong with it.
    pub what: String,
}

/// One `PT_LOAD` segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Address, before any bias.
    pub vaddr: u64,
    /// Bytes in memory.
    pub memsz: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes from the file.
    pub filesz: u64,
    /// Rights.
    pub prot: Prot,
}

/// A parsed program file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elf {
    /// Position-independent (`ET_DYN`): may be loaded anywhere.
    pub relocatable: bool,
    /// Entry point, before any bias.
    pub entry: u64,
    /// Address of the program headers in memory, before any bias; 0 if they are not loaded.
    pub phdr: u64,
    /// Number of program headers.
    pub phnum: u64,
    /// The loadable segments, in order of address.
    pub segments: Vec<Segment>,
    /// The interpreter's path, from `PT_INTERP`.
    pub interpreter: Option<String>,
    /// The stack must be executable.
    pub exec_stack: bool,
    /// It is built with ThreadSanitizer, whose runtime ends a program that is not where Linux would have put it.
    pub thread_sanitizer: bool,
    /// Largest segment alignment, at least a page.
    pub align: u64,
}

const HEADER: usize = 64;
/// Bytes of a program header.
pub const PHENT: usize = 56;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// A little-endian field of `N` bytes at `at`; the caller has checked the range.
fn field<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut v = [0; 8];
    v[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(v)
}

/// Reads the headers of a program file called `file`, all of which is `bytes`.
///
/// # Errors
/// The file is truncated, not ELF64 for x86-64, or its headers contradict each other.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Elf, ElfError> {
    let mut read = |at, len| part(bytes, at, len).map(<[u8]>::to_vec);
    parse_with(file, bytes.len() as u64, &mut read)
}

/// Reads the headers of a program file called `file` of `size` bytes. `read` gives the bytes at an offset,
/// exactly so many, or nothing.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(
    file: &str,
    size: u64,
    read: &mut dyn FnMut(u64, u64) -> Option<Vec<u8>>,
) -> Result<Elf, ElfError> {
    let bad = |field, what: String| ElfError {
        file: file.to_owned(),
        field,
        what,
    };
    let Some(bytes) = read(0, HEADER as u64) else {
        return Err(bad(
            "e_ident",
            format!("file of {size} bytes is too short for a header"),
        ));
    };
    let bytes = &bytes[..];
    if bytes[..4] != *b"\x7fELF" {
        return Err(bad("e_ident", "no ELF magic".into()));
    }
    if bytes[4] != 2 || bytes[5] != 1 || bytes[6] != 1 {
        return Err(bad(
            "e_ident",
            "not a 64-bit little-endian file of version 1".into(),
        ));
    }
    let relocatable = match field::<2>(bytes, 16) {
        2 => false,
        3 => true,
        t => return Err(bad("e_type", format!("{t} is neither ET_EXEC nor ET_DYN"))),
    };
    if field::<2>(bytes, 18) != 62 {
        return Err(bad(
            "e_machine",
            format!("{} is not x86-64", field::<2>(bytes, 18)),
        ));
    }
    let entry = field::<8>(bytes, 24);
    let phoff = field::<8>(bytes, 32);
    if field::<2>(bytes, 54) != PHENT as u64 {
        return Err(bad(
            "e_phentsize",
            format!("{} instead of {PHENT}", field::<2>(bytes, 54)),
        ));
    }
    let phnum = field::<2>(bytes, 56);
    if phnum == 0 || phnum > 1024 {
        return Err(bad("e_phnum", format!("{phnum} program headers")));
    }
    let table = read(phoff, phnum * PHENT as u64).ok_or_else(|| {
        bad(
            "e_phoff",
            format!("{phnum} program headers at {phoff:#x} leave the file"),
        )
    })?;
    let mut elf = Elf {
        relocatable,
        entry,
        phdr: 0,
        phnum,
        segments: Vec::new(),
        interpreter: None,
        exec_stack: false,
        thread_sanitizer: false,
        align: 4096,
    };
    let mut dynamic = None;
    for ph in table.chunks_exact(PHENT) {
        let flags = field::<4>(ph, 4) as u8;
        match field::<4>(ph, 0) as u32 {
            PT_LOAD => load(&mut elf, ph, size).map_err(|(f, w)| bad(f, w))?,
            PT_INTERP => {
                let at = (field::<8>(ph, 8), field::<8>(ph, 32));
                let text = Some(at.1)
                    .filter(|len| (2..=4096).contains(len))
                    .and_then(|len| read(at.0, len))
                    .filter(|t| t.iter().position(|b| *b == 0) == Some(t.len() - 1))
                    .and_then(|mut t| {
                        t.pop();
                        String::from_utf8(t).ok()
                    })
                    .ok_or_else(|| bad("PT_INTERP", format!("no path at {:#x}", at.0)))?;
                elf.interpreter = Some(text);
            }
            PT_DYNAMIC => dynamic = Some((field::<8>(ph, 8), field::<8>(ph, 32))),
            PT_PHDR => elf.phdr = field::<8>(ph, 16),
            PT_GNU_STACK => elf.exec_stack = flags & 1 != 0,
            _ => {}
        }
    }
    if elf.segments.is_empty() {
        return Err(bad("PT_LOAD", "nothing to load".into()));
    }
    let inside = |va: u64| {
        elf.segments
            .iter()
            .any(|s| va >= s.vaddr && va - s.vaddr < s.memsz)
    };
    if !inside(entry) {
        return Err(bad("e_entry", format!("{entry:#x} lies in no segment")));
    }
    if elf.phdr == 0 {
        let covers = |s: &&Segment| s.offset <= phoff && phoff - s.offset < s.filesz;
        if let Some(s) = elf.segments.iter().find(covers) {
            elf.phdr = s.vaddr + (phoff - s.offset);
        }
    } else if !inside(elf.phdr) {
        return Err(bad(
            "PT_PHDR",
            format!("{:#x} lies in no segment", elf.phdr),
        ));
    }
    if let Some(names) = dynamic.and_then(|at| dynamic_names(&elf, at, read)) {
        let name = b"__tsan_init";
        elf.thread_sanitizer = names.windows(name.len()).any(|w| w == name);
    }
    Ok(elf)
}

/// The names that the dynamic section at (offset, bytes) uses. None if it is not as expected: that is for the interpreter to say.
fn dynamic_names(
    elf: &Elf,
    (at, len): (u64, u64),
    read: &mut dyn FnMut(u64, u64) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    const DT_STRTAB: u64 = 5;
    const DT_STRSZ: u64 = 10;
    /// More than any program has.
    const MOST: u64 = 16 << 20;
    let section = read(at, len.min(4096))?;
    let value = |tag| {
        let mut entries = section.chunks_exact(16);
        let entry = entries.find(|e| field::<8>(e, 0) == tag)?;
        Some(field::<8>(entry, 8))
    };
    let (table, len) = (value(DT_STRTAB)?, value(DT_STRSZ)?.min(MOST));
    let holds = |s: &&Segment| table >= s.vaddr && table - s.vaddr < s.filesz;
    let segment = elf.segments.iter().find(holds)?;
    read(segment.offset + (table - segment.vaddr), len)
}

fn part(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn load(elf: &mut Elf, ph: &[u8], file_len: u64) -> Result<(), (&'static str, String)> {
    let flags = field::<4>(ph, 4) as u8;
    let s = Segment {
        offset: field::<8>(ph, 8),
        vaddr: field::<8>(ph, 16),
        filesz: field::<8>(ph, 32),
        memsz: field::<8>(ph, 40),
        prot: Prot((flags & 4) >> 2 | flags & 2 | (flags & 1) << 2),
    };
    let align = field::<8>(ph, 48);
    if s.memsz == 0 {
        return Ok(());
    }
    if s.offset
        .checked_add(s.filesz)
        .is_none_or(|end| end > file_len)
    {
        return Err((
            "p_filesz",
            format!("{:#x} bytes at {:#x} leave the file", s.filesz, s.offset),
        ));
    }
    if s.filesz > s.memsz {
        return Err((
            "p_memsz",
            format!("{:#x} is less than p_filesz {:#x}", s.memsz, s.filesz),
        ));
    }
    if s.vaddr
        .checked_add(s.memsz)
        .is_none_or(|end| end > USER_END - 0x1000_0000)
    {
        return Err((
            "p_vaddr",
            format!("{:#x} + {:#x} is no user address", s.vaddr, s.memsz),
        ));
    }
    if s.vaddr % 4096 != s.offset % 4096 {
        return Err((
            "p_offset",
            format!("{:#x} is not congruent to p_vaddr {:#x}", s.offset, s.vaddr),
        ));
    }
    if align > 1 && !align.is_power_of_two() {
        return Err(("p_align", format!("{align:#x} is no power of two")));
    }
    if let Some(previous) = elf.segments.last()
        && s.vaddr < previous.vaddr + previous.memsz
    {
        return Err((
            "p_vaddr",
            format!("{:#x} overlaps or precedes the segment before", s.vaddr),
        ));
    }
    elf.align = elf.align.max(align.min(1 << 30));
    elf.segments.push(s);
    Ok(())
}

impl Elf {
    /// First byte of its pages, before any bias.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(0, |s| s.vaddr & !4095)
    }
    /// First byte behind its pages, before any bias.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments
            .last()
            .map_or(0, |s| (s.vaddr + s.memsz).next_multiple_of(4096))
    }
}
