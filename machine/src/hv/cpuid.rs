//! What CPUID says: an EPYC of the 7003 family with the features that this machine runs and the host has.

use std::arch::x86_64::__cpuid_count;

use sevlab_arch::cpuid::sev_ebx;
use sevlab_cpu::SevMode;

/// The C-bit's position in page-table entries.
pub const C_BIT: u32 = 51;
/// VMPLs of an SNP guest.
const VMPLS: u32 = 4;
/// Family 19h, model 1, stepping 1.
const SIGNATURE: u32 = 0x00a0_0f11;
const BRAND: &[u8; 48] = b"AMD EPYC 7003-class Processor (sevlab)\0\0\0\0\0\0\0\0\0\0";
/// XSAVE area for x87, SSE and AVX state.
const XSAVE_SIZE: u32 = 832;

/// Bits of leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const L1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
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
/// Leaf 7 EBX: BMI1, AVX2, BMI2, ERMS, RDSEED, ADX, CLFLUSHOPT, CLWB, SHA.
const L7_EBX: u32 =
    1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 29;
/// Leaf 7 EBX: RDFSBASE and its kin, which need nothing of the host.
const FSGSBASE: u32 = 1;
/// Leaf 7 ECX: VAES, VPCLMULQDQ, RDPID.
const L7_ECX: u32 = 1 << 9 | 1 << 10 | 1 << 22;
/// Leaf 7 EDX: FSRM.
const L7_EDX: u32 = 1 << 4;
/// Leaf D.1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX = 1.
const LD1_EAX: u32 = 0b111;
/// Leaf 8000_0001 ECX: LAHF, ABM, PREFETCHW.
const E1_ECX: u32 = 1 | 1 << 5 | 1 << 8;
/// Leaf 8000_0001 EDX without the bits it shares with leaf 1: SYSCALL, NX, MMXEXT, FFXSR, 1 GiB pages, RDTSCP, long mode.
const E1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 22 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 29;
/// Bits of leaf 1 EDX that 8000_0001 EDX repeats.
const E1_SHARED: u32 = 0x0183_f3ff;

/// The CPU model of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    mode: SevMode,
    max_asid: u32,
    min_sev_asid: u32,
    l1_ecx: u32,
    l7: [u32; 3],
    ld1_eax: u32,
    e1_ecx: u32,
}

impl CpuModel {
    /// The model of a machine in `mode`, without what this host lacks.
    #[must_use]
    pub fn host(mode: SevMode, max_asid: u32, min_sev_asid: u32) -> Self {
        let host = |leaf, subleaf| {
            let r = __cpuid_count(leaf, subleaf);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        let basic = host(0, 0)[0];
        let l7 = if basic >= 7 { host(7, 0) } else { [0; 4] };
        let ld1 = if basic >= 0xd { host(0xd, 1) } else { [0; 4] };
        Self {
            mode,
            max_asid,
            min_sev_asid,
            l1_ecx: L1_ECX & host(1, 0)[2],
            l7: [L7_EBX & l7[1] | FSGSBASE, L7_ECX & l7[2], L7_EDX & l7[3]],
            ld1_eax: LD1_EAX & ld1[0],
            e1_ecx: E1_ECX & (host(0x8000_0001, 0)[2] | 1 << 8),
        }
    }

    /// EAX, EBX, ECX, EDX of a leaf; zeros beyond the last ones.
    #[must_use]
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0x10, word(b"Auth"), word(b"cAMD"), word(b"enti")],
            1 => [
                SIGNATURE,
                1 << 16 | 8 << 8,
                self.l1_ecx | OSXSAVE | HYPERVISOR,
                L1_EDX,
            ],
            4 | 0x8000_001d => self.cache(subleaf),
            7 if subleaf == 0 => [0, self.l7[0], self.l7[1], self.l7[2]],
            0xb => match subleaf {
                0 => [0, 1, 0x100, 0],
                1 => [0, 1, 0x201, 0],
                n => [0, 0, n & 0xff, 0],
            },
            0xd => match subleaf {
                0 => [7, XSAVE_SIZE, XSAVE_SIZE, 0],
                1 => [self.ld1_eax, XSAVE_SIZE, 0, 0],
                2 => [256, 576, 0, 0],
                _ => [0; 4],
            },
            0x4000_0000 => [0x4000_0000, word(b"SEVL"), word(b"ABSE"), word(b"VLAB")],
            0x8000_0000 => [0x8000_0021, word(b"Auth"), word(b"cAMD"), word(b"enti")],
            0x8000_0001 => [SIGNATURE, 4 << 28, self.e1_ecx, E1_EDX | L1_EDX & E1_SHARED],
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                std::array::from_fn(|i| {
                    let b = &BRAND[at + 4 * i..];
                    word(&[b[0], b[1], b[2], b[3]])
                })
            }
            // 64-entry L1 TLBs; 32 KiB, 8-way L1 caches of 64-byte lines.
            0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
            // 512 KiB, 8-way L2; 32 MiB, 16-way L3.
            0x8000_0006 => [0x4800_6400, 0x6800_6400, 0x0200_6140, 0x0100_9140],
            // Invariant TSC.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            // 48 bits of both kinds of address, one core.
            0x8000_0008 => [0x3030, 0, 0, 0],
            0x8000_001f => self.sev(),
            _ => [0; 4],
        }
    }

    /// Leaves 4 and 8000_001D: L1D, L1I, L2, L3.
    fn cache(&self, subleaf: u32) -> [u32; 4] {
        let (kind, level, ways, sets, inclusive) = match subleaf {
            0 => (1, 1, 8, 64, 0),
            1 => (2, 1, 8, 64, 0),
            2 => (3, 2, 8, 1024, 1 << 1),
            3 => (3, 3, 16, 32768, 0),
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

fn word(b: &[u8; 4]) -> u32 {
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
}
