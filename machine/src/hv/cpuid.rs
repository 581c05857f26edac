//! What CPUID says: an EPYC of some family, with the features that this machine runs and the host has. The instructions
//! that a guest can run follow from it ([`CpuModel::profile`]).

use std::arch::x86_64::__cpuid_count;

use sevlab_arch::cpuid::sev_ebx;
use sevlab_cpu::profile::CpuidFeature as F;
use sevlab_cpu::{Profile, SevMode};

/// The C-bit's position in page-table entries.
pub const C_BIT: u32 = 51;
/// VMPLs of an SNP guest.
const VMPLS: u32 = 4;
/// XSAVE area for x87, SSE and AVX state.
const XSAVE_SIZE: u32 = 832;
/// The part of it for x87 and SSE state.
const XSAVE_LEGACY: u32 = 576;

const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
const L1_EDX: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 11
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// Leaf 8000_0001 EDX without the bits it shares with leaf 1: SYSCALL, NX, MMXEXT, FFXSR, 1 GiB pages, RDTSCP, long mode.
const E1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 22 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 29;
/// Bits of leaf 1 EDX that 8000_0001 EDX repeats.
const E1_SHARED: u32 = 0x0183_f3ff;
/// Leaf 8000_0008 EBX: FXSAVE and its kin always save the error pointers.
const ERROR_POINTERS: u32 = 1 << 2;
/// Leaf 8000_0008 EDX: the last register that RDPRU reads.
const MAX_RDPRU: u32 = 1 << 16;

/// A register of a CPUID leaf that holds feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
enum Word {
    /// Leaf 1 ECX.
    L1c,
    /// Leaf 7 EBX.
    L7b,
    /// Leaf 7 ECX.
    L7c,
    /// Leaf 7 EDX.
    L7d,
    /// Leaf D.1 EAX.
    Ld1a,
    /// Leaf 8000_0001 ECX.
    E1c,
    /// Leaf 8000_0008 EBX.
    E8b,
}

impl Word {
    const COUNT: usize = 7;

    /// What the host has there.
    fn host(self) -> u32 {
        let (leaf, subleaf, register) = match self {
            Word::L1c => (1, 0, 2),
            Word::L7b => (7, 0, 1),
            Word::L7c => (7, 0, 2),
            Word::L7d => (7, 0, 3),
            Word::Ld1a => (0xd, 1, 0),
            Word::E1c => (0x8000_0001, 0, 2),
            Word::E8b => (0x8000_0008, 0, 1),
        };
        if leaf > __cpuid_count(leaf & 0x8000_0000, 0).eax {
            return 0;
        }
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx][register]
    }
}

/// What runs an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The host's own instruction: not shown where the host lacks it.
    Host,
    /// Software.
    Here,
}

/// A feature bit: where it is, the first Zen that has it, who runs its instructions, and which they are.
type Row = (Word, u32, u32, By, &'static [F]);

/// Every feature bit that this machine can show.
const FEATURES: &[Row] = {
    use By::{Here, Host};
    use Word::{E1c, E8b, L1c, L7b, L7c, L7d, Ld1a};
    &[
        (L1c, 0, 1, Host, &[F::SSE3]),
        (L1c, 1, 1, Host, &[F::PCLMULQDQ]),
        (L1c, 9, 1, Host, &[F::SSSE3]),
        (L1c, 12, 1, Host, &[F::FMA]),
        (L1c, 13, 1, Here, &[F::CMPXCHG16B]),
        (L1c, 19, 1, Host, &[F::SSE4_1]),
        (L1c, 20, 1, Host, &[F::SSE4_2]),
        (L1c, 22, 1, Here, &[F::MOVBE]),
        (L1c, 23, 1, Here, &[F::POPCNT]),
        (L1c, 25, 1, Host, &[F::AES]),
        (L1c, 26, 1, Here, &[F::XSAVE]),
        (L1c, 28, 1, Host, &[F::AVX]),
        (L1c, 29, 1, Host, &[F::F16C]),
        (L1c, 30, 1, Here, &[F::RDRAND]),
        (L7b, 0, 1, Here, &[F::FSGSBASE]),
        (L7b, 3, 1, Here, &[F::BMI1]),
        (L7b, 5, 1, Host, &[F::AVX2]),
        (L7b, 8, 1, Here, &[F::BMI2]),
        // ERMS and FSRM are about speed.
        (L7b, 9, 3, Here, &[]),
        (L7b, 18, 1, Here, &[F::RDSEED]),
        (L7b, 19, 1, Here, &[F::ADX]),
        (L7b, 23, 1, Here, &[F::CLFLUSHOPT]),
        (L7b, 24, 2, Here, &[F::CLWB]),
        (L7b, 29, 1, Host, &[F::SHA]),
        (L7c, 8, 4, Host, &[F::GFNI]),
        (L7c, 9, 3, Host, &[F::VAES]),
        (L7c, 10, 3, Host, &[F::VPCLMULQDQ]),
        (L7c, 22, 2, Here, &[F::RDPID]),
        (L7d, 4, 3, Here, &[]),
        (Ld1a, 0, 1, Here, &[F::XSAVEOPT]),
        (Ld1a, 1, 1, Here, &[F::XSAVEC]),
        // XGETBV with ECX = 1.
        (Ld1a, 2, 1, Here, &[]),
        // LAHF and SAHF.
        (E1c, 0, 1, Here, &[]),
        (E1c, 5, 1, Here, &[F::LZCNT]),
        (E1c, 6, 1, Here, &[F::SSE4A]),
        (E1c, 8, 1, Here, &[F::PREFETCHW]),
        (E1c, 29, 1, Here, &[F::MONITORX]),
        (E8b, 0, 1, Here, &[F::CLZERO]),
        (E8b, 4, 2, Here, &[F::RDPRU]),
        (E8b, 9, 2, Here, &[F::WBNOINVD]),
    ]
};

/// The hypervisor's leaf whose EAX is the TSC's rate in kHz (VMware's, which QEMU has too).
const TSC_LEAF: u32 = 0x4000_0010;

/// The processor that a guest is shown: `--cpu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuPreset {
    /// Everything that this host and this program can run, as an EPYC of the 7003 family.
    #[default]
    Host,
    /// EPYC 7002, Zen 2.
    EpycRome,
    /// EPYC 7003, Zen 3.
    EpycMilan,
    /// EPYC 9004, Zen 4, without AVX-512, which this program does not run.
    EpycGenoa,
}

/// What differs between presets beside feature bits.
struct Identity {
    zen: u32,
    /// Leaf 1 EAX.
    signature: u32,
    brand: &'static [u8; 48],
    l2_kib: u32,
    l3_mib: u32,
    snp: bool,
}

impl CpuPreset {
    /// All of them.
    pub const PRESETS: [Self; 4] = [Self::Host, Self::EpycRome, Self::EpycMilan, Self::EpycGenoa];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::EpycRome => "epyc-rome",
            Self::EpycMilan => "epyc-milan",
            Self::EpycGenoa => "epyc-genoa",
        }
    }

    /// Whether the real processor protects a guest like that.
    #[must_use]
    pub const fn offers(self, mode: SevMode) -> bool {
        self.identity().snp || !matches!(mode, SevMode::Snp)
    }

    const fn identity(self) -> Identity {
        match self {
            Self::Host => Identity {
                zen: u32::MAX,
                brand: b"AMD EPYC 7003-class Processor (sevlab)\0\0\0\0\0\0\0\0\0\0",
                ..Self::EpycMilan.identity()
            },
            // Family 17h, model 31h, stepping 0.
            Self::EpycRome => Identity {
                zen: 2,
                signature: 0x0083_0f10,
                brand: b"AMD EPYC 7002-class Processor (sevlab)\0\0\0\0\0\0\0\0\0\0",
                l2_kib: 512,
                l3_mib: 16,
                snp: false,
            },
            // Family 19h, model 1, stepping 1.
            Self::EpycMilan => Identity {
                zen: 3,
                signature: 0x00a0_0f11,
                brand: b"AMD EPYC 7003-class Processor (sevlab)\0\0\0\0\0\0\0\0\0\0",
                l2_kib: 512,
                l3_mib: 32,
                snp: true,
            },
            // Family 19h, model 11h, stepping 1.
            Self::EpycGenoa => Identity {
                zen: 4,
                signature: 0x00a1_0f11,
                brand: b"AMD EPYC 9004-class Processor (sevlab)\0\0\0\0\0\0\0\0\0\0",
                l2_kib: 1024,
                l3_mib: 32,
                snp: true,
            },
        }
    }
}

impl core::str::FromStr for CpuPreset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::PRESETS
            .into_iter()
            .find(|p| p.name() == text)
            .ok_or_else(|| {
                let names = Self::PRESETS.map(Self::name);
                format!("the processors are {}", names.join(", "))
            })
    }
}

/// The CPU model of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    preset: CpuPreset,
    mode: SevMode,
    max_asid: u32,
    min_sev_asid: u32,
    words: [u32; Word::COUNT],
    profile: Profile,
    /// Rate of the TSC, if the hypervisor tells it.
    tsc_mhz: u32,
}

impl CpuModel {
    /// The [`CpuPreset::Host`] model of a machine in `mode`, without what this host lacks.
    #[must_use]
    pub fn host(mode: SevMode, max_asid: u32, min_sev_asid: u32) -> Self {
        Self::new(CpuPreset::Host, mode, max_asid, min_sev_asid)
    }

    /// The model of a machine in `mode`, without what this host lacks.
    #[must_use]
    pub fn new(preset: CpuPreset, mode: SevMode, max_asid: u32, min_sev_asid: u32) -> Self {
        let zen = preset.identity().zen;
        let mut words = [0; Word::COUNT];
        let mut profile = Profile::ALL;
        for &(word, bit, since, by, features) in FEATURES {
            let runs = by == By::Here || word.host() >> bit & 1 != 0;
            if zen >= since && runs {
                words[word as usize] |= 1 << bit;
            } else {
                for &f in features {
                    profile.hide(f);
                }
            }
        }
        Self {
            preset,
            mode,
            max_asid,
            min_sev_asid,
            words,
            profile,
            tsc_mhz: 0,
        }
    }

    /// The hypervisor tells the rate of the TSC, in the leaf that others use for that.
    pub fn set_tsc_mhz(&mut self, mhz: u32) {
        self.tsc_mhz = mhz;
    }

    /// The instructions that go with what CPUID shows.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// XCR0: x87 and SSE state, and AVX state where there is AVX.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        if self.profile.has(F::AVX) { 7 } else { 3 }
    }

    /// EAX, EBX, ECX, EDX of a leaf; zeros beyond the last ones.
    #[must_use]
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let id = self.preset.identity();
        let word = |w: Word| self.words[w as usize];
        let avx = self.profile.has(F::AVX);
        let xsave = if avx { XSAVE_SIZE } else { XSAVE_LEGACY };
        match leaf {
            0 => [0x10, text(b"Auth"), text(b"cAMD"), text(b"enti")],
            1 => [
                id.signature,
                1 << 16 | 8 << 8,
                word(Word::L1c) | OSXSAVE | HYPERVISOR,
                L1_EDX,
            ],
            4 | 0x8000_001d => self.cache(subleaf),
            7 if subleaf == 0 => [0, word(Word::L7b), word(Word::L7c), word(Word::L7d)],
            0xb => match subleaf {
                0 => [0, 1, 0x100, 0],
                1 => [0, 1, 0x201, 0],
                n => [0, 0, n & 0xff, 0],
            },
            0xd => match subleaf {
                0 => [self.xcr0() as u32, xsave, xsave, 0],
                1 => [word(Word::Ld1a), xsave, 0, 0],
                2 if avx => [256, 576, 0, 0],
                _ => [0; 4],
            },
            TSC_LEAF if self.tsc_mhz > 0 => [self.tsc_mhz.saturating_mul(1000), 0, 0, 0],
            0x4000_0000 if self.tsc_mhz > 0 => {
                [TSC_LEAF, text(b"SEVL"), text(b"ABSE"), text(b"VLAB")]
            }
            0x4000_0000 => [0x4000_0000, text(b"SEVL"), text(b"ABSE"), text(b"VLAB")],
            0x8000_0000 => [0x8000_0021, text(b"Auth"), text(b"cAMD"), text(b"enti")],
            0x8000_0001 => [
                id.signature,
                4 << 28,
                word(Word::E1c),
                E1_EDX | L1_EDX & E1_SHARED,
            ],
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                std::array::from_fn(|i| {
                    let b = &id.brand[at + 4 * i..];
                    text(&[b[0], b[1], b[2], b[3]])
                })
            }
            // 64-entry L1 TLBs; 32 KiB, 8-way L1 caches of 64-byte lines.
            0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
            // 8-way L2 in KiB; 16-way L3 in units of 512 KiB.
            0x8000_0006 => [
                0x4800_6400,
                0x6800_6400,
                id.l2_kib << 16 | 0x6140,
                id.l3_mib << 19 | 0x9140,
            ],
            // Invariant TSC.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            // 48 bits of both kinds of address, one core.
            0x8000_0008 => {
                let rdpru = if self.profile.has(F::RDPRU) {
                    MAX_RDPRU
                } else {
                    0
                };
                [0x3030, word(Word::E8b) | ERROR_POINTERS, 0, rdpru]
            }
            0x8000_001f => self.sev(),
            _ => [0; 4],
        }
    }

    /// Leaves 4 and 8000_001D: L1D, L1I, L2, L3.
    fn cache(&self, subleaf: u32) -> [u32; 4] {
        let id = self.preset.identity();
        let (kind, level, ways, sets, inclusive) = match subleaf {
            0 => (1, 1, 8, 64, 0),
            1 => (2, 1, 8, 64, 0),
            2 => (3, 2, 8, id.l2_kib * 2, 1 << 1),
            3 => (3, 3, 16, id.l3_mib * 1024, 0),
            _ => return [0; 4],
        };
        // Self-initialising, shared by nobody else.
        let eax = kind | level << 5 | 1 << 8;
        [eax, (ways - 1) << 22 | 63, sets - 1, inclusive]
    }

    /// Leaf 8000_001F: what protects the guest.
    fn sev(&self) -> [u32; 4] {
        let bits = match self.mode {
            SevMode::Off => return [0; 4],
            SevMode::Sev => 1 << 1,
            SevMode::Es => 1 << 1 | 1 << 3,
            SevMode::Snp => 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5,
        };
        let vmpls = if self.mode == SevMode::Snp { VMPLS } else { 0 };
        // Bit 10: caches are coherent across encryption domains.
        [
            bits | 1 << 10,
            sev_ebx(C_BIT, 0, vmpls),
            self.max_asid,
            self.min_sev_asid,
        ]
    }

    /// The leaves of a launch's CPUID page, in order.
    #[must_use]
    pub fn page_leaves() -> Vec<(u32, u32)> {
        let mut leaves = vec![(0, 0), (1, 0), (7, 0), (0xb, 0), (0xb, 1)];
        leaves.extend([(0xd, 0), (0xd, 1), (0xd, 2)]);
        leaves.extend((0x8000_0000..=0x8000_0008).map(|l| (l, 0)));
        leaves.extend((0..4).map(|s| (0x8000_001d, s)));
        leaves.extend([(0x8000_001e, 0), (0x8000_001f, 0), (0x8000_0021, 0)]);
        leaves
    }
}

fn text(b: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_told() {
        for (mode, eax) in [
            (SevMode::Off, 0),
            (SevMode::Sev, 0x402),
            (SevMode::Es, 0x40a),
            (SevMode::Snp, 0x43a),
        ] {
            let m = CpuModel::host(mode, 509, 100);
            let r = m.leaf(0x8000_001f, 0);
            assert_eq!(r[0], eax);
            assert!(mode == SevMode::Off || r[1] & 0x3f == C_BIT);
        }
    }

    #[test]
    fn no_avx512_and_a_vendor() {
        let m = CpuModel::host(SevMode::Off, 0, 0);
        let v = m.leaf(0, 0);
        let name: Vec<u8> = [v[1], v[3], v[2]]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        assert_eq!(name, b"AuthenticAMD");
        let avx512 = 3 << 16 | 1 << 21 | 7 << 26 | 3 << 30;
        assert_eq!(m.leaf(7, 0)[1] & avx512, 0);
        assert_ne!(m.leaf(1, 0)[2] & HYPERVISOR, 0);
        assert_eq!(m.leaf(0xd, 0)[1], 832);
        assert_eq!(m.leaf(0x1234, 0), [0; 4]);
    }

    #[test]
    fn presets_differ_as_their_processors_do() {
        let model = |p| CpuModel::new(p, SevMode::Off, 0, 0);
        let (rome, milan, genoa) = (
            model(CpuPreset::EpycRome),
            model(CpuPreset::EpycMilan),
            model(CpuPreset::EpycGenoa),
        );
        for (m, family, number) in [(&rome, 0x17, 0x31), (&milan, 0x19, 1), (&genoa, 0x19, 0x11)] {
            let eax = m.leaf(1, 0)[0];
            assert_eq!((eax >> 8 & 15) + (eax >> 20 & 0xff), family);
            assert_eq!(eax >> 4 & 15 | eax >> 12 & 0xf0, number);
            assert_eq!(m.leaf(0x8000_0001, 0)[0], eax);
        }
        // VAES came with Zen 3, GFNI with Zen 4.
        assert_eq!(rome.leaf(7, 0)[2] & (1 << 8 | 1 << 9), 0);
        assert_eq!(milan.leaf(7, 0)[2] & 1 << 8, 0);
        assert!(!rome.profile().has(F::VAES) && !milan.profile().has(F::GFNI));
        // Caches: sets times ways times 64 is the size.
        let size = |m: &CpuModel, n| {
            let [_, b, c, _] = m.leaf(0x8000_001d, n);
            u64::from(c + 1) * u64::from((b >> 22) + 1) * 64
        };
        assert_eq!((size(&rome, 2), size(&rome, 3)), (512 << 10, 16 << 20));
        assert_eq!((size(&genoa, 2), size(&genoa, 3)), (1 << 20, 32 << 20));
        assert_eq!(milan.leaf(0x8000_0006, 0)[2..], [0x0200_6140, 0x0100_9140]);
        assert!(!CpuPreset::EpycRome.offers(SevMode::Snp));
        for p in CpuPreset::PRESETS {
            assert_eq!(p.name().parse(), Ok(p));
        }
        assert!("zen".parse::<CpuPreset>().is_err());
    }

    #[test]
    fn what_is_shown_is_what_runs() {
        for p in CpuPreset::PRESETS {
            let m = CpuModel::new(p, SevMode::Off, 0, 0);
            for (word, bit, _, _, features) in FEATURES {
                let shown = m.words[*word as usize] >> bit & 1 != 0;
                assert!(features.iter().all(|&f| m.profile().has(f) == shown));
            }
            assert_eq!(u64::from(m.leaf(0xd, 0)[0]), m.xcr0());
        }
    }
}
