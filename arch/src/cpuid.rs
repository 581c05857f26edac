//! CPUID: leaf numbers, the bits about SEV, and the CPUID page of an SNP launch.
//!
//! Source: APM vol. 3, appendix E; SNP ABI, "CPUID page"; Linux `asm/sev.h`.

open_enum! {
    /// A leaf.
    Leaf(u32) {
        VENDOR = 0x0, "Largest standard leaf and vendor.";
        FEATURES = 0x1, "Family, model, stepping and features.";
        MONITOR = 0x5, "MONITOR and MWAIT.";
        POWER = 0x6, "Power management.";
        STRUCTURED = 0x7, "Structured extended features.";
        TOPOLOGY = 0xb, "Extended topology.";
        XSTATE = 0xd, "Extended state.";
        HYPERVISOR = 0x4000_0000, "Largest hypervisor leaf and vendor.";
        EXT_VENDOR = 0x8000_0000, "Largest extended leaf.";
        EXT_FEATURES = 0x8000_0001, "Extended features.";
        BRAND1 = 0x8000_0002, "Processor name, first part.";
        BRAND2 = 0x8000_0003, "Processor name, second part.";
        BRAND3 = 0x8000_0004, "Processor name, third part.";
        L1 = 0x8000_0005, "L1 caches and TLBs.";
        L2_L3 = 0x8000_0006, "L2 and L3 caches and TLBs.";
        APM = 0x8000_0007, "Power management and RAS.";
        ADDRESS_SIZES = 0x8000_0008, "Address sizes and more features.";
        SVM = 0x8000_000a, "SVM.";
        CACHE_TOPOLOGY = 0x8000_001d, "Cache topology.";
        EXT_TOPOLOGY = 0x8000_001e, "Extended APIC identifier.";
        SEV = 0x8000_001f, "Encrypted memory.";
        FEATURES2 = 0x8000_0021, "Extended features 2.";
    }
}

bitflags::bitflags! {
    /// 8000_001F EAX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SevEax: u32 {
        /// SME.
        const SME = 1 << 0;
        /// SEV.
        const SEV = 1 << 1;
        /// VM_PAGE_FLUSH MSR.
        const PAGE_FLUSH_MSR = 1 << 2;
        /// SEV-ES.
        const SEV_ES = 1 << 3;
        /// SNP.
        const SNP = 1 << 4;
        /// VMPLs.
        const VMPL = 1 << 5;
        /// RMPQUERY.
        const RMPQUERY = 1 << 6;
        /// Supervisor shadow stack by VMPL.
        const VMPL_SSS = 1 << 7;
        /// Secure TSC.
        const SECURE_TSC = 1 << 8;
        /// Virtual TSC_AUX.
        const TSC_AUX_VIRTUALISATION = 1 << 9;
        /// Caches are coherent across encryption domains.
        const COHERENT = 1 << 10;
        /// 64-bit host required.
        const REQUIRES_64_BIT_HOST = 1 << 11;
        /// Restricted injection.
        const RESTRICTED_INJECTION = 1 << 12;
        /// Alternate injection.
        const ALTERNATE_INJECTION = 1 << 13;
        /// Debug registers are swapped.
        const DEBUG_SWAP = 1 << 14;
        /// The host's IBS can be off.
        const PREVENT_HOST_IBS = 1 << 15;
        /// Virtual top of memory.
        const VTE = 1 << 16;
        /// VMGEXIT parameter.
        const VMGEXIT_PARAMETER = 1 << 17;
        /// An SVSM is present.
        const SVSM = 1 << 28;
    }
}

/// 8000_001F EBX bits 5:0: position of the C-bit.
pub const SEV_EBX_C_BIT_MASK: u32 = 0x3f;
/// 8000_001F EBX bits 11:6: physical address bits lost.
pub const SEV_EBX_REDUCTION_SHIFT: u32 = 6;
/// 8000_001F EBX bits 15:12: number of VMPLs.
pub const SEV_EBX_VMPLS_SHIFT: u32 = 12;
/// 8000_001F EBX bit 31: no cache eviction is needed after validating a page.
pub const SEV_EBX_COHERENCY_SFW_NO: u32 = 1 << 31;

/// 8000_001F EBX.
#[must_use]
pub const fn sev_ebx(c_bit: u32, reduction: u32, vmpls: u32) -> u32 {
    (c_bit & 0x3f)
        | (reduction & 0x3f) << SEV_EBX_REDUCTION_SHIFT
        | (vmpls & 0xf) << SEV_EBX_VMPLS_SHIFT
        | SEV_EBX_COHERENCY_SFW_NO
}

/// Most entries a CPUID page may hold.
pub const CPUID_PAGE_ENTRIES: usize = 64;

wire! {
    /// One function in the CPUID page.
    CpuidEntry: 0x30, aligned {
        0x00 eax_in: u32, "Leaf.";
        0x04 ecx_in: u32, "Subleaf.";
        0x08 xcr0_in: u64, "XCR0 the answer holds for.";
        0x10 xss_in: u64, "XSS the answer holds for.";
        0x18 eax: u32, "EAX.";
        0x1c ebx: u32, "EBX.";
        0x20 ecx: u32, "ECX.";
        0x24 edx: u32, "EDX.";
        0x28 reserved: u64, "Must be zero.";
    }
}

wire! {
    /// The CPUID page.
    CpuidPage: 0x1000, aligned {
        0x000 count: u32, "Number of entries used.";
        0x004 reserved1: u32, "Must be zero.";
        0x008 reserved2: u64, "Must be zero.";
        0x010 entries: [CpuidEntry; CPUID_PAGE_ENTRIES], "The entries.";
        0xc10 reserved3: [u8; 1008], "Must be zero.";
    }
}
