//! What the files of `/proc` say that are the guest's.
//!
//! Where the host's file is right but for some fields (times, session, parent), it is read and those are replaced.

use super::procfs::Name;
use super::{Call, clocks, limits};
use crate::kernel::error::Fail;
use crate::kernel::mm::{Backing, Cx, Vma};
use crate::kernel::signal::{SIG_DFL, SIG_IGN, SIG_MAX, bit};

/// The contents of a file; `None`: the host's is right as it is.
///
/// # Errors
/// The exit failed.
pub fn contents(call: &mut Call<'_, '_>, name: &Name) -> Result<Option<Vec<u8>>, Fail> {
    let name = match name {
        Name::Machine(name) if name == "cpuinfo" => return Ok(Some(cpuinfo(call)?)),
        Name::Machine(name) if name == "uptime" => {
            return Ok(clocks::uptime(call).map(|up| {
                let up = format!("{}.{:02}", up.as_secs(), up.subsec_millis() / 10);
                format!("{up} 0.00\n").into_bytes()
            }));
        }
        Name::Machine(name) if name == "loadavg" => {
            return Ok(Some(b"0.00 0.00 0.00 1/1 1\n".to_vec()));
        }
        Name::Machine(_) => return Ok(Some(meminfo(call).into_bytes())),
        Name::Own(name) => name.as_str(),
    };
    Ok(Some(match name {
        "maps" => maps(call).into_bytes(),
        "smaps" => smaps(call, false)?.into_bytes(),
        "smaps_rollup" => smaps(call, true)?.into_bytes(),
        "cmdline" => call.kernel.cmdline(),
        "environ" => call.kernel.environ(),
        "auxv" => call.kernel.auxv().to_vec(),
        "comm" => call.kernel.comm_line(),
        "stat" => stat(call)?,
        "statm" => statm(call).into_bytes(),
        "status" => status(call)?,
        "limits" => limits::text(&call.kernel.limits).into_bytes(),
        _ => return Ok(None),
    }))
}

/// A file that the launch has put into memory.
struct Loaded {
    start: u64,
    end: u64,
    name: String,
}

/// The program and its interpreter. They are pages of the launch, not mappings of files: where they lie is said by the
/// auxiliary vector, and the interpreter's name by the program's headers.
fn loaded(call: &mut Call<'_, '_>) -> Vec<Loaded> {
    const AT_PHDR: u64 = 3;
    const AT_PHNUM: u64 = 5;
    const AT_BASE: u64 = 7;
    const PT_INTERP: u32 = 3;
    const PT_PHDR: u32 = 6;
    const PHDR: usize = 56;
    let auxv = call.kernel.auxv().to_vec();
    let word = |b: &[u8], at: usize| u64::from_le_bytes(core::array::from_fn(|i| b[at + i]));
    let aux = |tag: u64| {
        let mut pairs = auxv.chunks_exact(16).map(|p| (word(p, 0), word(p, 8)));
        pairs.find(|(t, _)| *t == tag).map(|(_, v)| v)
    };
    let mut all = Vec::new();
    let Some(phdr) = aux(AT_PHDR) else { return all };
    let exe = call.kernel.exe.to_string_lossy().into_owned();
    all.extend(neighbours(call, phdr, exe));
    let mut headers = vec![0; PHDR * aux(AT_PHNUM).unwrap_or(0).min(256) as usize];
    let Some(base) = aux(AT_BASE).filter(|b| *b != 0) else {
        return all;
    };
    if call.read_user(phdr, &mut headers).is_err() {
        return all;
    }
    let find = |kind: u32| {
        let mut list = headers.chunks_exact(PHDR);
        list.find(|h| word(h, 0) as u32 == kind)
            .map(|h| word(h, 16))
    };
    let bias = find(PT_PHDR).map_or(0, |at| phdr.wrapping_sub(at));
    if let Some(at) = find(PT_INTERP)
        && let Ok(name) = call.read_str(bias.wrapping_add(at))
    {
        let name = String::from_utf8_lossy(&name[..name.len() - 1]).into_owned();
        all.extend(neighbours(call, base, name));
    }
    all
}

/// The unnamed areas around `at` without a gap between them.
fn neighbours(call: &Call<'_, '_>, at: u64, name: String) -> Option<Loaded> {
    let areas = call.kernel.mm.areas();
    let unnamed = |area: &Vma| area.backing == Backing::Anon("");
    let (mut start, area) = areas.find(at).filter(|(_, a)| unnamed(a))?;
    let mut end = area.end;
    while let Some((s, area)) = areas.below(start)
        && area.end == start
        && unnamed(area)
    {
        start = s;
    }
    while let Some((_, area)) = areas.find(end)
        && unnamed(area)
    {
        end = area.end;
    }
    Some(Loaded { start, end, name })
}

/// `/proc/self/maps`.
fn maps(call: &mut Call<'_, '_>) -> String {
    let loaded = loaded(call);
    let mut text = String::new();
    for line in call.kernel.mm.maps_text().lines() {
        let start = line.split('-').next().unwrap_or("");
        let start = u64::from_str_radix(start, 16).unwrap_or(0);
        let unnamed = line.split_whitespace().count() == 5;
        let file = loaded.iter().find(|f| (f.start..f.end).contains(&start));
        text.push_str(line);
        if let Some(file) = file.filter(|_| unnamed) {
            text.push_str("                          ");
            text.push_str(&file.name);
        }
        text.push('\n');
    }
    text
}

/// What the areas add up to, in bytes.
#[derive(Default)]
struct Sizes {
    all: u64,
    data: u64,
    stack: u64,
    text: u64,
    lib: u64,
    stack_top: u64,
    /// The program's own code and data: first byte, and first byte behind.
    code: (u64, u64),
    initialized: (u64, u64),
}

fn sizes(call: &mut Call<'_, '_>) -> Sizes {
    let mut sum = Sizes::default();
    let exe = loaded(call).into_iter().next();
    for (start, area) in call.kernel.mm.areas().iter() {
        let bytes = area.end - start;
        sum.all += bytes;
        let own = exe
            .as_ref()
            .is_some_and(|f| (f.start..f.end).contains(&start));
        if area.backing == Backing::Stack {
            sum.stack += bytes;
            sum.stack_top = area.end;
        } else if area.prot.executes() {
            if own {
                sum.text += bytes;
                sum.code = (start, area.end);
            } else {
                sum.lib += bytes;
            }
        } else if area.prot.writes() && !area.shared {
            sum.data += bytes;
            if own {
                sum.initialized = (start, area.end);
            }
        }
    }
    sum
}

fn meminfo(call: &Call<'_, '_>) -> String {
    let frames = call.kernel.mm.frames();
    let (total, free) = (frames.total() * 4, frames.free() * 4);
    let lines: [(&str, u64); 22] = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", total - free),
        ("Inactive", 0),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", total - free),
        ("Mapped", 0),
        ("Shmem", 0),
        ("Slab", 0),
        ("PageTables", 0),
        ("CommitLimit", total),
        ("Committed_AS", total - free),
        ("VmallocTotal", 34_359_738_367),
    ];
    let line = |(name, kib): &(&str, u64)| format!("{:<15} {kib:>8} kB\n", format!("{name}:"));
    lines.iter().map(line).collect()
}

/// The host's, with what CPUID says about the guest's processor.
fn cpuinfo(call: &mut Call<'_, '_>) -> Result<Vec<u8>, Fail> {
    let host = match call.kernel.sim {
        Some(_) => Vec::new(),
        None => call.host_file(b"/proc/cpuinfo")?,
    };
    let host = String::from_utf8_lossy(&host);
    let leaf = |call: &mut Call<'_, '_>, leaf: u32| call.out.cpuid(call.vcpu, leaf, 0);
    let [level, b, c, d] = leaf(call, 0)?;
    let vendor: Vec<u8> = [b, d, c].iter().flat_map(|r| r.to_le_bytes()).collect();
    let [version, _, ecx1, edx1] = leaf(call, 1)?;
    let [_, ebx7, ecx7, edx7] = if level >= 7 { leaf(call, 7)? } else { [0; 4] };
    let [xsave, ..] = if level >= 13 {
        call.out.cpuid(call.vcpu, 13, 1)?
    } else {
        [0; 4]
    };
    let [extended, ..] = leaf(call, 0x8000_0000)?;
    let [_, _, ecx81, edx81] = if extended >= 0x8000_0001 {
        leaf(call, 0x8000_0001)?
    } else {
        [0; 4]
    };
    let mut name = Vec::new();
    if extended >= 0x8000_0004 {
        for n in 0x8000_0002..=0x8000_0004 {
            name.extend(leaf(call, n)?.iter().flat_map(|r| r.to_le_bytes()));
        }
    }
    let trimmed = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
    };
    let (mut family, mut model) = (version >> 8 & 15, version >> 4 & 15);
    if family == 15 {
        family += version >> 20 & 0xff;
    }
    if family >= 6 {
        model |= version >> 12 & 0xf0;
    }
    let sets = [
        (edx1, &LEAF_1_EDX[..]),
        (edx81, &LEAF_8000_0001_EDX[..]),
        (ecx1, &LEAF_1_ECX[..]),
        (ecx81, &LEAF_8000_0001_ECX[..]),
        (ebx7, &LEAF_7_EBX[..]),
        (xsave, &LEAF_D_1_EAX[..]),
        (ecx7, &LEAF_7_ECX[..]),
        (edx7, &LEAF_7_EDX[..]),
    ];
    let mut flags: Vec<&str> = Vec::new();
    for (bits, names) in sets {
        flags.extend(
            names
                .iter()
                .filter(|(bit, _)| bits >> bit & 1 != 0)
                .map(|(_, n)| *n),
        );
    }
    let mut text = String::new();
    if let Some(time) = call.kernel.time() {
        let mhz = time.mhz();
        for cpu in 0..clocks::CPUS {
            let lines: [(&str, String); 16] = [
                ("processor", cpu.to_string()),
                ("vendor_id", trimmed(&vendor)),
                ("cpu family", family.to_string()),
                ("model", model.to_string()),
                ("model name", trimmed(&name)),
                ("stepping", (version & 15).to_string()),
                ("cpu MHz", format!("{mhz}.000")),
                ("physical id", "0".to_owned()),
                ("siblings", clocks::CPUS.to_string()),
                ("core id", cpu.to_string()),
                ("cpu cores", clocks::CPUS.to_string()),
                ("apicid", cpu.to_string()),
                ("cpuid level", level.to_string()),
                ("flags", flags.join(" ")),
                ("bogomips", format!("{}.00", 2 * mhz)),
                ("clflush size", "64".to_owned()),
            ];
            for (key, value) in lines {
                text.push_str(&format!("{key:<16}: {value}\n"));
            }
            text.push('\n');
        }
    }
    for line in host.lines() {
        let key = line.split(':').next().unwrap_or("").trim_end();
        let value = match key {
            "vendor_id" => trimmed(&vendor),
            "cpu family" => family.to_string(),
            "model" => model.to_string(),
            "model name" => trimmed(&name),
            "stepping" => (version & 15).to_string(),
            "cpuid level" => level.to_string(),
            "flags" => flags.join(" "),
            _ => {
                text.push_str(line);
                text.push('\n');
                continue;
            }
        };
        let colon = line.find(':').unwrap_or(line.len());
        text.push_str(&line[..colon]);
        text.push_str(": ");
        text.push_str(&value);
        text.push('\n');
    }
    Ok(text.into_bytes())
}

/// Pages of an area that are there.
fn resident(call: &mut Call<'_, '_>, start: u64, end: u64) -> Result<u64, Fail> {
    let mut cx = Cx {
        vcpu: call.vcpu,
        out: call.out,
    };
    let map = call.kernel.mm.resident(&mut cx, start, end)?;
    Ok(map.iter().map(|b| u64::from(b & 1)).sum())
}

fn smaps(call: &mut Call<'_, '_>, rollup: bool) -> Result<String, Fail> {
    let maps = maps(call);
    let areas: Vec<(u64, Vma)> = call
        .kernel
        .mm
        .areas()
        .iter()
        .map(|(s, a)| (s, a.clone()))
        .collect();
    let mut text = String::new();
    let mut sum = [0; 3];
    let numbers = |size: Option<u64>, rss: u64, private: u64| {
        let mut lines = Vec::new();
        if let Some(size) = size {
            lines.extend([("Size", size), ("KernelPageSize", 4), ("MMUPageSize", 4)]);
        }
        lines.extend([
            ("Rss", rss),
            ("Pss", rss),
            ("Shared_Clean", 0),
            ("Shared_Dirty", rss - private),
            ("Private_Clean", 0),
            ("Private_Dirty", private),
            ("Referenced", rss),
            ("Anonymous", private),
            ("Swap", 0),
            ("Locked", 0),
        ]);
        let line = |(name, kib): &(&str, u64)| format!("{:<15} {kib:>8} kB\n", format!("{name}:"));
        lines.iter().map(line).collect::<String>()
    };
    for (line, (start, area)) in maps.lines().zip(&areas) {
        let rss = resident(call, *start, area.end)? * 4;
        let private = if area.shared { 0 } else { rss };
        if !rollup {
            text.push_str(line);
            text.push('\n');
            text.push_str(&numbers(Some((area.end - start) / 1024), rss, private));
            let letter = |on: bool, name: &'static str| if on { name } else { "" };
            text.push_str(&format!(
                "VmFlags: {}{}{}{}mr mw me \n",
                letter(area.prot.0 & 1 != 0, "rd "),
                letter(area.prot.writes(), "wr "),
                letter(area.prot.executes(), "ex "),
                letter(area.shared, "sh "),
            ));
        }
        sum = [sum[0] + rss, sum[1] + private, 0];
    }
    if rollup {
        let (start, end) = match (areas.first(), areas.last()) {
            (Some((start, _)), Some((_, last))) => (*start, last.end),
            _ => (0, 0),
        };
        text = format!(
            "{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]\n"
        );
        text.push_str(&numbers(None, sum[0], sum[1]));
    }
    Ok(text)
}

/// Blocked, ignored and caught signals.
fn masks(call: &mut Call<'_, '_>) -> [u64; 4] {
    let (pending, blocked) = (call.kernel.pending(), call.kernel.task().signals.mask);
    let signals = &call.kernel.signals;
    let with = |wanted: &dyn Fn(u64) -> bool| {
        (1..=SIG_MAX)
            .filter(|n| wanted(signals.action(*n).handler))
            .fold(0, |set, n| set | bit(n))
    };
    [
        pending,
        blocked,
        with(&|h| h == SIG_IGN),
        with(&|h| h != SIG_IGN && h != SIG_DFL),
    ]
}

/// The host's line, with sizes, signals and addresses of the guest's (proc_pid_stat(5) numbers the fields from 1).
fn stat(call: &mut Call<'_, '_>) -> Result<Vec<u8>, Fail> {
    let host = call.host_file(b"/proc/self/stat")?;
    let host = String::from_utf8_lossy(&host);
    let pid = call.pid()?;
    let rest = host.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    let sizes = sizes(call);
    let stats = call.kernel.mm.stats();
    let [pending, blocked, ignored, caught] = masks(call);
    let (code, data) = (sizes.code, sizes.initialized);
    let (rip, rsp) = (call.vcpu.state.rip, call.vcpu.state.gpr[4]);
    let limit = call.kernel.limits[5][0];
    let new = [
        (10, stats.faults),
        (12, 0),
        (20, call.threads()),
        (23, sizes.all),
        (24, stats.resident),
        (25, limit),
        (26, code.0),
        (27, code.1),
        (28, sizes.stack_top.saturating_sub(8)),
        (29, rsp),
        (30, rip),
        (31, pending & 0x7fff_ffff),
        (32, blocked & 0x7fff_ffff),
        (33, ignored & 0x7fff_ffff),
        (34, caught & 0x7fff_ffff),
        (45, data.0),
        (46, data.1),
        (47, 0),
        (48, 0),
        (49, 0),
        (50, 0),
        (51, 0),
    ];
    for (field, value) in new {
        // the first two are not in the list
        if let Some(f) = fields.get_mut(field - 3) {
            *f = value.to_string();
        }
    }
    if let Some(pids) = call.kernel.sim.as_ref().and_then(|sim| sim.pids.as_ref()) {
        // parent, group, session, the terminal's group
        for field in [4, 5, 6, 8] {
            if let Some(f) = fields.get_mut(field - 3) {
                let id = f.parse().unwrap_or(0);
                *f = pids.inward(id).to_string();
            }
        }
    }
    if let Some(time) = call.kernel.time() {
        // faults of the host's, times, start, processor
        let [user, system, cuser, csystem] = clocks::ticks(time);
        let of_host = [(11, 0), (13, 0), (22, 0), (39, call.kernel.slot() as u64)];
        let times = [(14, user), (15, system), (16, cuser), (17, csystem)];
        for (field, value) in of_host
            .into_iter()
            .chain(times)
            .chain([(42, 0), (43, 0), (44, 0)])
        {
            if let Some(f) = fields.get_mut(field - 3) {
                *f = value.to_string();
            }
        }
    }
    let comm = call.kernel.comm_line();
    let comm = String::from_utf8_lossy(&comm[..comm.len() - 1]).into_owned();
    Ok(format!("{pid} ({comm}) {}\n", fields.join(" ")).into_bytes())
}

fn statm(call: &mut Call<'_, '_>) -> String {
    let s = sizes(call);
    let resident = call.kernel.mm.stats().resident;
    let pages = |bytes: u64| bytes / 4096;
    format!(
        "{} {resident} 0 {} 0 {} 0\n",
        pages(s.all),
        pages(s.text),
        pages(s.data + s.stack)
    )
}

/// The host's lines, with names, sizes and signals of the guest's.
fn status(call: &mut Call<'_, '_>) -> Result<Vec<u8>, Fail> {
    let host = call.host_file(b"/proc/self/status")?;
    let host = String::from_utf8_lossy(&host).into_owned();
    let s = sizes(call);
    let stats = call.kernel.mm.stats();
    let [pending, blocked, ignored, caught] = masks(call);
    let kib = |bytes: u64| format!("{:>8} kB", bytes / 1024);
    let pages = |n: u64| format!("{:>8} kB", n * 4);
    let comm = call.kernel.comm_line();
    let comm = String::from_utf8_lossy(&comm[..comm.len() - 1]).into_owned();
    let mut text = String::new();
    for line in host.lines() {
        let key = line.split(':').next().unwrap_or("");
        let value = match key {
            "Tgid" | "Pid" | "PPid" | "TracerPid" | "NStgid" | "NSpid" | "NSpgid" | "NSsid"
                if call.kernel.sim.is_some() =>
            {
                let id = line.rsplit('\t').next().and_then(|n| n.trim().parse().ok());
                call.own_number(id.unwrap_or(0)).to_string()
            }
            "voluntary_ctxt_switches" | "nonvoluntary_ctxt_switches"
                if call.kernel.sim.is_some() =>
            {
                "0".to_owned()
            }
            "Name" => comm.clone(),
            "FDSize" => "256".to_owned(),
            "VmPeak" | "VmSize" => kib(s.all),
            "VmLck" | "VmPin" | "VmSwap" | "HugetlbPages" | "VmPTE" | "RssFile" | "RssShmem" => {
                kib(0)
            }
            "VmHWM" => pages(stats.peak),
            "VmRSS" | "RssAnon" => pages(stats.resident),
            "VmData" => kib(s.data),
            "VmStk" => kib(s.stack),
            "VmExe" => kib(s.text),
            "VmLib" => kib(s.lib),
            "Threads" => call.threads().to_string(),
            "SigPnd" => format!("{:016x}", 0),
            "ShdPnd" => format!("{pending:016x}"),
            "SigBlk" => format!("{blocked:016x}"),
            "SigIgn" => format!("{ignored:016x}"),
            "SigCgt" => format!("{caught:016x}"),
            _ => {
                text.push_str(line);
                text.push('\n');
                continue;
            }
        };
        text.push_str(&format!("{key}:\t{value}\n"));
    }
    Ok(text.into_bytes())
}

impl Call<'_, '_> {
    /// The guest's number of a process that the host names.
    #[must_use]
    pub fn own_number(&self, id: i32) -> i32 {
        let pids = self.kernel.sim.as_ref().and_then(|sim| sim.pids.as_ref());
        pids.map_or(id, |pids| pids.inward(id))
    }

    /// As [`Call::own_number`], of a process or thread that the guest has met.
    #[must_use]
    pub fn known_number(&self, id: i32) -> Option<i32> {
        match self.kernel.sim.as_ref().and_then(|sim| sim.pids.as_ref()) {
            Some(pids) => pids.known(id),
            None => Some(id),
        }
    }

    /// How many threads the guest has.
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.kernel.tasks().count() as u64
    }
}

/// Bits and names of a CPUID register, as `/proc/cpuinfo` has them.
type Flags = (u8, &'static str);

#[rustfmt::skip]
const LEAF_1_EDX: [Flags; 29] = [
    (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
    (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"),
    (18, "pn"), (19, "clflush"), (21, "dts"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"),
    (27, "ss"), (28, "ht"), (29, "tm"), (31, "pbe"),
];
#[rustfmt::skip]
const LEAF_1_ECX: [Flags; 29] = [
    (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"), (7, "est"),
    (8, "tm2"), (9, "ssse3"), (10, "cid"), (11, "sdbg"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"),
    (17, "pcid"), (18, "dca"), (19, "sse4_1"), (20, "sse4_2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"),
    (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
];
#[rustfmt::skip]
const LEAF_8000_0001_EDX: [Flags; 10] = [
    (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"), (27, "rdtscp"),
    (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
];
#[rustfmt::skip]
const LEAF_8000_0001_ECX: [Flags; 23] = [
    (0, "lahf_lm"), (1, "cmp_legacy"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "abm"), (6, "sse4a"),
    (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"),
    (15, "lwp"), (16, "fma4"), (17, "tce"), (21, "tbm"), (22, "topoext"), (23, "perfctr_core"), (24, "perfctr_nb"),
    (28, "perfctr_llc"), (29, "mwaitx"),
];
#[rustfmt::skip]
const LEAF_7_EBX: [Flags; 27] = [
    (0, "fsgsbase"), (1, "tsc_adjust"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (7, "smep"), (8, "bmi2"), (9, "erms"),
    (10, "invpcid"), (11, "rtm"), (14, "mpx"), (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"),
    (20, "smap"), (21, "avx512ifma"), (23, "clflushopt"), (24, "clwb"), (25, "intel_pt"), (26, "avx512pf"),
    (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl"), (12, "cqm"),
];
#[rustfmt::skip]
const LEAF_7_ECX: [Flags; 13] = [
    (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (4, "ospke"), (6, "avx512_vbmi2"), (8, "gfni"), (9, "vaes"),
    (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"), (14, "avx512_vpopcntdq"), (16, "la57"),
    (22, "rdpid"),
];
#[rustfmt::skip]
const LEAF_7_EDX: [Flags; 5] =
    [(4, "fsrm"), (8, "avx512_vp2intersect"), (14, "serialize"), (20, "ibt"), (28, "flush_l1d")];
#[rustfmt::skip]
const LEAF_D_1_EAX: [Flags; 4] = [(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")];
