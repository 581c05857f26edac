//! Model specific registers: numbers and bits.
//!
//! Source: APM vol. 2, appendix A; Linux `asm/msr-index.h`.

open_enum! {
    /// An MSR's number.
    Msr(u32) {
        TSC = 0x10, "Time stamp counter.";
        APIC_BASE = 0x1b, "APIC base.";
        SPEC_CTRL = 0x48, "Speculation control.";
        PRED_CMD = 0x49, "Prediction command.";
        MTRR_CAP = 0xfe, "MTRR capabilities.";
        SYSENTER_CS = 0x174, "SYSENTER CS.";
        SYSENTER_ESP = 0x175, "SYSENTER ESP.";
        SYSENTER_EIP = 0x176, "SYSENTER EIP.";
        MCG_CAP = 0x179, "Machine check capabilities.";
        MCG_STATUS = 0x17a, "Machine check status.";
        DEBUG_CTL = 0x1d9, "Debug control.";
        PAT = 0x277, "Page attribute table.";
        MTRR_DEF_TYPE = 0x2ff, "Default memory type.";
        U_CET = 0x6a0, "User control-flow enforcement.";
        S_CET = 0x6a2, "Supervisor control-flow enforcement.";
        PL0_SSP = 0x6a4, "Shadow stack of CPL 0.";
        PL1_SSP = 0x6a5, "Shadow stack of CPL 1.";
        PL2_SSP = 0x6a6, "Shadow stack of CPL 2.";
        PL3_SSP = 0x6a7, "Shadow stack of CPL 3.";
        ISST_ADDR = 0x6a8, "Interrupt shadow stack table.";
        XSS = 0xda0, "Extended supervisor state.";
        EFER = 0xc000_0080, "Extended features.";
        STAR = 0xc000_0081, "SYSCALL selectors.";
        LSTAR = 0xc000_0082, "SYSCALL target, 64-bit.";
        CSTAR = 0xc000_0083, "SYSCALL target, compatibility.";
        SFMASK = 0xc000_0084, "SYSCALL flag mask.";
        FS_BASE = 0xc000_0100, "FS base.";
        GS_BASE = 0xc000_0101, "GS base.";
        KERNEL_GS_BASE = 0xc000_0102, "GS base SWAPGS brings in.";
        TSC_AUX = 0xc000_0103, "RDTSCP's ECX.";
        TSC_RATIO = 0xc000_0104, "TSC ratio.";
        SYSCFG = 0xc001_0010, "System configuration.";
        HWCR = 0xc001_0015, "Hardware configuration.";
        VM_CR = 0xc001_0114, "SVM control.";
        VM_HSAVE_PA = 0xc001_0117, "Host save area.";
        VM_PAGE_FLUSH = 0xc001_011e, "Write one encrypted page back.";
        GHCB = 0xc001_0130, "GHCB address or protocol value.";
        SEV_STATUS = 0xc001_0131, "What the guest runs with.";
        RMP_BASE = 0xc001_0132, "First byte of the RMP.";
        RMP_END = 0xc001_0133, "Last byte of the RMP.";
        GUEST_TSC_FREQ = 0xc001_0134, "Guest TSC frequency in MHz, with Secure TSC.";
        SVSM_CAA = 0xc001_f000, "SVSM calling area.";
    }
}

bitflags::bitflags! {
    /// EFER.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Efer: u64 {
        /// SYSCALL enabled.
        const SCE = 1 << 0;
        /// Long mode enabled.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enabled.
        const NXE = 1 << 11;
        /// SVM enabled.
        const SVME = 1 << 12;
        /// Long mode segment limits.
        const LMSLE = 1 << 13;
        /// Fast FXSAVE.
        const FFXSR = 1 << 14;
        /// Translation cache extension.
        const TCE = 1 << 15;
        /// Automatic IBRS.
        const AUTOIBRS = 1 << 21;
    }
}

bitflags::bitflags! {
    /// SYSCFG.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Syscfg: u64 {
        /// Fixed MTRR DRAM attributes enabled.
        const MFDE = 1 << 18;
        /// They can be modified.
        const MFDM = 1 << 19;
        /// Memory encryption.
        const MEM_ENCRYPT = 1 << 23;
        /// SNP.
        const SNP_EN = 1 << 24;
        /// VMPLs.
        const VMPL_EN = 1 << 25;
    }
}

bitflags::bitflags! {
    /// SEV_STATUS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SevStatus: u64 {
        /// SEV.
        const SEV = 1 << 0;
        /// SEV-ES.
        const SEV_ES = 1 << 1;
        /// SNP.
        const SNP = 1 << 2;
        /// Virtual top of memory.
        const VTOM = 1 << 3;
        /// #VC reflects to a more privileged VMPL.
        const REFLECT_VC = 1 << 4;
        /// Restricted injection.
        const RESTRICTED_INJECTION = 1 << 5;
        /// Alternate injection.
        const ALTERNATE_INJECTION = 1 << 6;
        /// Debug registers are swapped.
        const DEBUG_SWAP = 1 << 7;
        /// The host's IBS is off.
        const PREVENT_HOST_IBS = 1 << 8;
        /// Branch target buffer isolation.
        const BTB_ISOLATION = 1 << 9;
        /// Supervisor shadow stack by VMPL.
        const VMPL_SSS = 1 << 10;
        /// Secure TSC.
        const SECURE_TSC = 1 << 11;
        /// VMGEXIT parameter.
        const VMGEXIT_PARAMETER = 1 << 12;
        /// IBS virtualisation.
        const IBS_VIRTUALISATION = 1 << 14;
        /// VMSA register protection.
        const VMSA_REG_PROT = 1 << 16;
        /// SMT protection.
        const SMT_PROTECTION = 1 << 17;
        /// IBPB on entry.
        const IBPB_ON_ENTRY = 1 << 23;
    }
}

/// VM_CR: SVM is locked out.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// HWCR: SMM lock.
pub const HWCR_SMMLOCK: u64 = 1 << 0;
