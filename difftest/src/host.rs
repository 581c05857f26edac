//! What the host's processor is, where vendors differ and where it has instructions that other hosts lack.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

/// Who made the host's processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// AMD, and Hygon, whose processors are AMD's.
    Amd,
    /// Intel.
    Intel,
    /// Somebody else: nothing that is said of the other two is assumed.
    Other,
}

/// What CPUID says.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its maker.
    pub vendor: Vendor,
    /// EXTRQ, INSERTQ, MOVNTSS, MOVNTSD.
    pub sse4a: bool,
    /// CLZERO.
    pub clzero: bool,
    /// MONITORX, MWAITX.
    pub monitorx: bool,
    /// RDPRU.
    pub rdpru: bool,
}

/// The host's processor.
#[must_use]
pub fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = __cpuid(0);
        let mut text = [0; 12];
        for (out, v) in text.chunks_exact_mut(4).zip([name.ebx, name.edx, name.ecx]) {
            out.copy_from_slice(&v.to_le_bytes());
        }
        let vendor = match &text {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            b"GenuineIntel" => Vendor::Intel,
            _ => Vendor::Other,
        };
        let last = __cpuid(0x8000_0000).eax;
        let leaf = |n: u32| (n <= last).then(|| __cpuid_count(n, 0));
        let one = leaf(0x8000_0001).map_or(0, |l| l.ecx);
        let eight = leaf(0x8000_0008).map_or(0, |l| l.ebx);
        let on = |v: u32, bit: u32| vendor == Vendor::Amd && v >> bit & 1 != 0;
        Host {
            vendor,
            sse4a: on(one, 6),
            clzero: on(eight, 0),
            monitorx: on(one, 29),
            rdpru: on(eight, 4),
        }
    })
}

/// Whether the host's processor is AMD's.
#[must_use]
pub fn amd() -> bool {
    host().vendor == Vendor::Amd
}
