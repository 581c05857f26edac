//! What a run counted, and how it is shown to a person.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use sevlab_arch::exit::ExitCode;
use sevlab_cpu::vcpu::Counters;
use sevlab_memctl::MemStats;

use crate::family::Children;
use crate::hv::Exits;
use crate::kernel::syscall::table;
use crate::simulation::Simulation;

/// What the translator did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Translated {
    /// Guest instructions that ran translated.
    pub instructions: u64,
    /// Guest instructions that ran as copies of the guest's own code.
    pub copied: u64,
    /// Regions compiled.
    pub regions: u64,
    /// Regions taken from the code cache.
    pub loaded: u64,
    /// Copies of blocks taken from there.
    pub loaded_copies: u64,
    /// Time spent compiling, on whatever thread.
    pub compile_time: Duration,
    /// Bytes of host code, without those of copies.
    pub code_bytes: u64,
    /// Blocks copied.
    pub copies: u64,
    /// Bytes of their host code.
    pub copy_bytes: u64,
    /// Host instructions in it, if they were counted ([`sevlab_jit::JitOptions::count_host`]).
    pub code_instructions: u64,
}

/// The counts of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Wall time from the first VMRUN to the guest's end.
    pub elapsed: Duration,
    /// Guest instructions retired.
    pub instructions: u64,
    /// What the translator did; `None` on the interpreter alone.
    pub translated: Option<Translated>,
    /// The vCPU's counts.
    pub vcpu: Counters,
    /// The memory controller's counts.
    pub memory: MemStats,
    /// Exits by kind.
    pub exits: Exits,
    /// System calls the guest made.
    pub syscalls: u64,
    /// System calls the host executed for it.
    pub host_calls: u64,
    /// System calls that nobody knows, by number.
    pub unknown: BTreeMap<i64, u64>,
    /// System calls the guest kernel refuses, by number.
    pub refused: BTreeMap<i64, u64>,
    /// What the guest's child processes counted, which is in none of the other counts.
    pub children: Children,
    /// What the simulated caches counted, if there were any.
    pub simulation: Option<Simulation>,
    /// The launch measurement.
    pub measurement: Vec<u8>,
}

impl Stats {
    /// Guest instructions a second, in millions.
    #[must_use]
    pub fn mips(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.instructions as f64 / seconds / 1e6
        } else {
            0.0
        }
    }
}

/// A number with thousands separated, right-aligned as perf stat does.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad_integral(true, "", &text)
    }
}

/// Lowercase hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A count with its name, and what there is to say of it.
pub(crate) fn line(f: &mut fmt::Formatter<'_>, n: u64, what: &str, note: &str) -> fmt::Result {
    let note = if note.is_empty() {
        String::new()
    } else {
        format!("  # {note}")
    };
    writeln!(f, "{:>20}      {what:<28}{note}", Count(n))
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64| {
            format!(
                "{:6.2} % of all",
                100.0 * part as f64 / self.instructions.max(1) as f64
            )
        };
        let mips = format!("{:.1} million/s", self.mips());
        line(f, self.instructions, "guest instructions", &mips)?;
        if let Some(t) = &self.translated {
            let interpreted = self.instructions.saturating_sub(t.instructions + t.copied);
            line(f, t.instructions, "translated", &share(t.instructions))?;
            if t.copies + t.loaded_copies > 0 {
                line(f, t.copied, "copied", &share(t.copied))?;
            }
            line(f, interpreted, "interpreted", &share(interpreted))?;
            let time = format!("{:.1} ms compiling", t.compile_time.as_secs_f64() * 1e3);
            line(f, t.regions, "regions compiled", &time)?;
            if t.loaded > 0 {
                line(f, t.loaded, "regions from the code cache", "")?;
            }
            if t.copies > 0 {
                line(f, t.copies, "blocks copied", "")?;
            }
            if t.loaded_copies > 0 {
                line(f, t.loaded_copies, "copies from the code cache", "")?;
            }
            line(f, t.code_bytes + t.copy_bytes, "bytes of host code", "")?;
        }
        if let Some(simulation) = &self.simulation {
            write!(f, "{simulation}")?;
        }
        line(f, self.vcpu.tlb_fills, "TLB fills", "")?;
        line(
            f,
            self.vcpu.full_walks + self.vcpu.short_walks,
            "page walks",
            "",
        )?;
        line(f, self.vcpu.tlb_flushes, "TLB flushes", "")?;
        line(f, self.memory.pages_decrypted, "pages decrypted", "")?;
        line(f, self.memory.pages_encrypted, "pages encrypted", "")?;
        line(f, self.memory.aes_blocks, "AES blocks", "")?;
        line(f, self.memory.evictions, "pages evicted", "")?;
        line(f, self.vcpu.entries, "world switches", "")?;
        for (code, n) in &self.exits.codes {
            line(f, *n, &format!("exits: {}", ExitCode(*code)), "")?;
        }
        for (code, n) in &self.exits.events {
            line(f, *n, &format!("GHCB events: {}", event_name(*code)), "")?;
        }
        line(f, self.syscalls, "system calls", "")?;
        line(f, self.host_calls, "of them executed by the host", "")?;
        for (nr, n) in &self.unknown {
            line(f, *n, &format!("unknown system call {nr}"), "")?;
        }
        for (nr, n) in &self.refused {
            let name = table::row(*nr).map_or("?", |row| row.name);
            line(f, *n, &format!("refused system call {name}"), "")?;
        }
        let c = &self.children;
        if c.processes > 0 {
            line(f, c.processes, "child processes", "")?;
            line(f, c.instructions, "their guest instructions", "")?;
            line(f, c.entries, "their world switches", "")?;
            line(f, c.syscalls, "their system calls", "")?;
            line(f, c.pages_decrypted, "their pages decrypted", "")?;
            line(f, c.pages_encrypted, "their pages encrypted", "")?;
            line(f, c.aes_blocks, "their AES blocks", "")?;
            if self.simulation.is_some() {
                line(f, c.busy_cycles, "their busy cycles", "")?;
            }
        }
        if !self.measurement.is_empty() {
            writeln!(f, "{:>20}      {}", "measurement", hex(&self.measurement))?;
        }
        writeln!(
            f,
            "{:>20.6}      seconds elapsed",
            self.elapsed.as_secs_f64()
        )
    }
}

/// What a GHCB event is called; 0 stands for the MSR protocol.
pub(crate) fn event_name(code: u64) -> String {
    match code {
        0 => "MSR protocol".to_owned(),
        u64::MAX => "no exit code".to_owned(),
        code => ExitCode(code).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(Count(n).to_string(), text);
        }
        assert_eq!(format!("{:>7}", Count(1000)), "  1,000");
    }

    #[test]
    fn display_names_what_happened() {
        let mut s = Stats {
            elapsed: Duration::from_millis(500),
            instructions: 2_000_000,
            measurement: vec![0xab, 0xcd],
            ..Stats::default()
        };
        s.exits.codes.insert(ExitCode::VMGEXIT.0, 3);
        s.exits.events.insert(ExitCode::VMMCALL.0, 2);
        s.unknown.insert(999, 1);
        let text = s.to_string();
        for part in [
            "2,000,000",
            "4.0 million/s",
            "VMGEXIT",
            "VMMCALL",
            "call 999",
            "abcd",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
