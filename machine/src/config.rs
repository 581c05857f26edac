//! What a machine is built from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use sevlab_arch::psp::{SevPolicy, SnpPolicy};
use sevlab_cpu::model::trace::{Trace, TraceEvent};
use sevlab_jit::JitOptions;
use sevlab_memctl::MemCtl;
use sevlab_memctl::model::Model;

use crate::hv::cpuid::CpuPreset;

pub use sevlab_cpu::SevMode;
pub use sevlab_memctl::{CacheMode, CipherKind};

/// What runs guest code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Engine {
    /// The interpreter alone.
    Interpreter,
    /// The translator, with the interpreter as its first tier.
    Jit(JitOptions),
}

/// A machine's configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct MachineConfig {
    /// Which SEV technology protects the guest.
    pub sev: SevMode,
    /// The memory controller's cipher.
    pub cipher: CipherKind,
    /// What of encrypted memory is kept as plaintext.
    pub cache: CacheMode,
    /// The simulated caches, TLBs and latencies of [`CacheMode::Hierarchy`]; there must be one then. With a model the
    /// guest lives in simulated time ([`crate::simtime`]), its vCPUs run in turns, and all that is random comes from
    /// [`MachineConfig::seed`].
    pub model: Option<Arc<Model>>,
    /// The processor that the guest is shown.
    pub cpu: CpuPreset,
    /// Guest memory in bytes; rounded up to 2 MiB.
    pub memory: u64,
    /// Most private pages kept as plaintext; `None`: no limit.
    pub resident: Option<usize>,
    /// Bytes of the shared bounce area; rounded up to a page.
    pub bounce: u64,
    /// What runs guest code.
    pub engine: Engine,
    /// Makes keys, nonces, tweaks and the chip's identity repeatable; `None`: random.
    pub seed: Option<u64>,
    /// With a model: the guest is killed with SIGXCPU after about that many instructions (to a turn); each of its
    /// processes by its own count. `None`: no limit.
    pub instructions: Option<u64>,
    /// vCPUs run one at a time, in turns that depend on nothing but what the guest does; and code is translated at
    /// a point of the run that does not depend on time either. What comes from outside comes when it comes.
    pub deterministic: bool,
    /// Policy of an SEV or SEV-ES guest; the ES bit is set as the mode needs it.
    pub sev_policy: SevPolicy,
    /// Policy of an SNP guest.
    pub snp_policy: SnpPolicy,
    /// HOST_DATA of an SNP launch.
    pub host_data: [u8; 32],
    /// Whether host signals are forwarded to the guest while it runs. One machine of a process at a time
    /// can have them.
    pub host_signals: bool,
    /// Whether DRAM can be looked at after the run. If not, the plaintext that is left at the guest's end
    /// is dropped instead of encrypted, which spares a large guest some time and the host some memory.
    pub keep_dram: bool,
    /// The program file.
    pub program: PathBuf,
    /// Its arguments, with its name first.
    pub argv: Vec<OsString>,
    /// Its environment, `NAME=value`.
    pub envp: Vec<OsString>,
    /// Whether guest virtual memory is a range of the host's, where that can be: [`CacheMode::Page`] without
    /// [`MachineConfig::resident`]. Faster, and nothing that a guest notices.
    pub view: bool,
    /// With a model: who is told of every access; the interpreter alone runs then.
    pub watch: Option<Watch>,
}

/// Who is told of every access of a machine with a model, by all vCPUs; of accesses of child processes only in their clone of
/// the host process.
#[derive(Clone)]
pub struct Watch(pub Arc<Watcher>);

/// What is told.
pub type Watcher = dyn Fn(&TraceEvent<'_>, &MemCtl) + Send + Sync;

impl Watch {
    /// For one vCPU.
    pub(crate) fn trace(&self, mem: &Arc<MemCtl>) -> Trace {
        let (told, mem) = (Arc::clone(&self.0), Arc::clone(mem));
        Box::new(move |event| told(event, &mem))
    }
}

impl PartialEq for Watch {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl MachineConfig {
    /// Default guest memory.
    pub const MEMORY: u64 = 4 << 30;
    /// Default bounce area.
    pub const BOUNCE: u64 = 1 << 20;

    /// Seed of a machine with a model for which none is given.
    pub const SEED: u64 = 1;

    /// Whether vCPUs run one at a time: because that is asked for, or because pages are pushed out of the
    /// simulated caches, which a vCPU that runs at that moment must not be using.
    #[must_use]
    pub fn in_turns(&self) -> bool {
        self.deterministic || self.resident.is_some() || self.model.is_some()
    }

    /// The configuration with what a model brings along: [`CacheMode::Hierarchy`] and a seed.
    #[must_use]
    pub(crate) fn completed(mut self) -> Self {
        if self.model.is_some() {
            self.cache = CacheMode::Hierarchy;
            self.deterministic = true;
            self.seed.get_or_insert(Self::SEED);
            if self.watch.is_some() {
                self.engine = Engine::Interpreter;
            }
        }
        self
    }

    /// A machine that runs `program` without arguments, environment or protection.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self {
            sev: SevMode::Off,
            cipher: CipherKind::Aes128Xex,
            cache: CacheMode::Page,
            model: None,
            cpu: CpuPreset::Host,
            memory: Self::MEMORY,
            resident: None,
            bounce: Self::BOUNCE,
            engine: Engine::Jit(JitOptions::default()),
            seed: None,
            instructions: None,
            deterministic: false,
            sev_policy: SevPolicy::NODBG | SevPolicy::NOKS,
            snp_policy: SnpPolicy::SMT | SnpPolicy::RESERVED_MUST_BE_ONE,
            host_data: [0; 32],
            host_signals: true,
            keep_dram: true,
            argv: vec![program.clone().into_os_string()],
            envp: Vec::new(),
            watch: None,
            view: true,
            program,
        }
    }
}

/// The name that the command line and reports use for a mode.
#[must_use]
pub fn mode_name(mode: SevMode) -> &'static str {
    match mode {
        SevMode::Off => "off",
        SevMode::Sev => "sev",
        SevMode::Es => "sev-es",
        SevMode::Snp => "sev-snp",
    }
}

/// The name that the command line and reports use for a cache mode.
#[must_use]
pub fn cache_name(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::Page => "page",
        CacheMode::None => "none",
        CacheMode::Hierarchy => "hierarchy",
    }
}
