#![allow(unsafe_code)] // one mapping and one memfd, to see whether they can be made
//! The host: CPU, memory, kernel settings, counters.

use std::fs::{self, File};
use std::io;
use std::os::fd::FromRawFd;

use perf_event::Builder;
use perf_event::events::Hardware;
use sevlab_machine::MachineConfig;

use super::{Finding, Verdict};

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// The value of `key` in a file of `key: value` lines.
fn entry(path: &str, key: &str) -> Option<String> {
    let text = read(path)?;
    let line = text
        .lines()
        .find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// CPU and memory.
pub fn machine() -> Vec<Finding> {
    let model = entry("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_else(unknown);
    vec![
        Finding::plain("CPU", model),
        Finding::check(
            "cores for this process",
            cores >= 2,
            cores.to_string(),
            "the translator's compile thread takes turns with the guest: programs warm up more slowly",
        ),
        Finding::plain("Linux", kernel),
        memory(),
    ]
}

fn memory() -> Finding {
    let kib = |key| {
        let value = entry("/proc/meminfo", key)?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (Some(total), Some(free)) = (kib("MemTotal"), kib("MemAvailable")) else {
        return Finding::plain("memory", unknown());
    };
    let gib = |kib: u64| kib as f64 / f64::from(1 << 20);
    Finding::check(
        "memory",
        free >= 2 << 20,
        format!("{:.1} GiB, of them {:.1} available", gib(total), gib(free)),
        "a touched page of an encrypted guest takes twice its size (DRAM and plaintext); keep --memory small",
    )
}

/// Kernel settings that runs depend on.
pub fn kernel() -> Vec<Finding> {
    vec![
        mapping(),
        overcommit(),
        executable_memory(),
        huge_pages(),
        Finding::plain(
            "vm.max_map_count",
            read("/proc/sys/vm/max_map_count").unwrap_or_else(unknown),
        ),
        descriptors(),
    ]
}

/// Whether DRAM and plaintext of a default machine can be mapped.
fn mapping() -> Finding {
    let what = "default guest memory";
    let bytes = 2 * MachineConfig::MEMORY as usize;
    // SAFETY: a fresh mapping without access, given back at once.
    let map = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let p = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        );
        if p == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            libc::munmap(p, bytes);
            Ok(())
        }
    };
    let gib = MachineConfig::MEMORY >> 30;
    match map {
        Ok(()) => Finding::new(
            what,
            Verdict::Good,
            format!("{gib} GiB can be mapped twice"),
            "",
        ),
        Err(e) => Finding::new(
            what,
            Verdict::Costs,
            format!("{gib} GiB can't be mapped twice: {e}"),
            "runs need a smaller --memory here",
        ),
    }
}

fn overcommit() -> Finding {
    let what = "vm.overcommit_memory";
    let value = read("/proc/sys/vm/overcommit_memory").unwrap_or_else(unknown);
    let strict = value == "2";
    Finding::check(
        what,
        !strict,
        value,
        "guest memory counts in full, touched or not: choose --memory accordingly",
    )
}

/// Translated code and native thunks live in a memfd that is mapped twice, writable and executable.
fn executable_memory() -> Finding {
    let what = "executable memfd";
    match try_executable_memfd() {
        Ok(()) => Finding::new(what, Verdict::Good, "yes", ""),
        Err(e) => Finding::new(
            what,
            Verdict::Fatal,
            format!("no: {e}"),
            "translated code and thunks need one; look at vm.memfd_noexec and at security modules",
        ),
    }
}

fn try_executable_memfd() -> io::Result<()> {
    // SAFETY: the name is a constant; the descriptor is owned by the File from then on; the mapping is given back
    // without ever being used.
    unsafe {
        let fd = libc::memfd_create(c"sevlab-doctor".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let file = File::from_raw_fd(fd);
        file.set_len(4096)?;
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        let p = libc::mmap(std::ptr::null_mut(), 4096, prot, libc::MAP_SHARED, fd, 0);
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::munmap(p, 4096);
    }
    Ok(())
}

fn huge_pages() -> Finding {
    let what = "transparent huge pages";
    let note = "guest memory lies in 4 KiB pages on the host: more host TLB misses in large programs; \
                enable: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    let Some(text) = read("/sys/kernel/mm/transparent_hugepage/enabled") else {
        return Finding::check(what, false, "not in this kernel", note);
    };
    let chosen = text
        .split_whitespace()
        .find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    let chosen = chosen.unwrap_or("unknown").to_owned();
    Finding::check(what, chosen != "never", chosen, note)
}

fn descriptors() -> Finding {
    /// Where sevlab keeps its own descriptors, out of the guest's way.
    const WANTED: u64 = 9100;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes a live struct.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    Finding::check(
        "descriptors (hard limit)",
        limit.rlim_max >= WANTED,
        limit.rlim_max.to_string(),
        "fewer than 9100: programs that map very many files at a time may fail",
    )
}

/// perf_event_open, as the benchmarks use it.
pub fn counters() -> Vec<Finding> {
    let tried = [
        ("cycles", Hardware::CPU_CYCLES),
        ("instructions", Hardware::INSTRUCTIONS),
        ("cache misses", Hardware::CACHE_MISSES),
        ("branch misses", Hardware::BRANCH_MISSES),
    ]
    .map(|(name, event)| (name, Builder::new().kind(event).build().err()));
    let names = |there: bool| {
        let names: Vec<&str> = tried
            .iter()
            .filter(|(_, e)| e.is_none() == there)
            .map(|(name, _)| *name)
            .collect();
        names.join(", ")
    };
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid").unwrap_or_else(unknown);
    let counters = match tried.iter().find_map(|(_, e)| e.as_ref()) {
        None => Finding::new("hardware counters", Verdict::Good, names(true), ""),
        Some(e) => Finding::new(
            "hardware counters",
            Verdict::Costs,
            format!("not available: {} ({e})", names(false)),
            "benchmarks here measure time only, guests run the same; try kernel.perf_event_paranoid=1, or a host with a PMU",
        ),
    };
    vec![
        Finding::plain("kernel.perf_event_paranoid", paranoid),
        counters,
    ]
}
