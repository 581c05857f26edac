//! What a secure processor is built with.

use std::sync::Arc;

use crate::entropy::Entropy;

/// A firmware API version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ApiVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
    /// Build.
    pub build: u8,
}

/// One CPUID leaf as a guest would see it: inputs and outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidLeaf {
    /// EAX in.
    pub leaf: u32,
    /// ECX in.
    pub subleaf: u32,
    /// XCR0 in.
    pub xcr0: u64,
    /// XSS in.
    pub xss: u64,
    /// EAX, EBX, ECX, EDX out.
    pub out: [u32; 4],
}

/// What the firmware holds a CPUID page against: given a leaf, the values the platform allows.
pub type CpuidPolicy = Arc<dyn Fn(&CpuidLeaf) -> [u32; 4] + Send + Sync>;

/// The secure processor's configuration.
#[derive(Clone)]
pub struct Config {
    /// The fused secret that makes one chip differ from another.
    pub chip_seed: [u8; 32],
    /// Where random keys and nonces come from.
    pub entropy: Entropy,
    /// SEV API version.
    pub api: ApiVersion,
    /// SEV-SNP ABI version.
    pub snp_api: ApiVersion,
    /// Highest ASID of an encrypted guest (CPUID 8000_001F ECX).
    pub max_asid: u32,
    /// Lowest ASID of a guest without encrypted state (CPUID 8000_001F EDX); those below are for SEV-ES
    /// and SEV-SNP.
    pub min_sev_asid: u32,
    /// Whether the platform runs with simultaneous multithreading.
    pub smt: bool,
    /// TCB version: boot loader, TEE, SNP, microcode as packed by the SNP ABI.
    pub tcb: u64,
    /// Checks CPUID pages at launch; `None` accepts every well-formed page.
    pub cpuid: Option<CpuidPolicy>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chip_seed: [0; 32],
            entropy: Entropy::Os,
            api: ApiVersion {
                major: 1,
                minor: 55,
                build: 21,
            },
            snp_api: ApiVersion {
                major: 1,
                minor: 55,
                build: 21,
            },
            max_asid: 509,
            min_sev_asid: 100,
            smt: false,
            tcb: 0xd1_16_00_00_00_00_00_04,
            cpuid: None,
        }
    }
}
