//! Exit codes: what the VMCB's EXITCODE, a #VC's error code and the GHCB's SW_EXITCODE hold.
//!
//! Source: APM vol. 2, appendix C; GHCB specification, "Supported guest events"; Linux `uapi/asm/svm.h`.

open_enum! {
    /// An exit code.
    ExitCode(u64) {
        READ_CR0 = 0x0, "Read of CR0.";
        READ_CR2 = 0x2, "Read of CR2.";
        READ_CR3 = 0x3, "Read of CR3.";
        READ_CR4 = 0x4, "Read of CR4.";
        READ_CR8 = 0x8, "Read of CR8.";
        WRITE_CR0 = 0x10, "Write of CR0.";
        WRITE_CR2 = 0x12, "Write of CR2.";
        WRITE_CR3 = 0x13, "Write of CR3.";
        WRITE_CR4 = 0x14, "Write of CR4.";
        WRITE_CR8 = 0x18, "Write of CR8.";
        READ_DR0 = 0x20, "Read of DR0.";
        READ_DR1 = 0x21, "Read of DR1.";
        READ_DR2 = 0x22, "Read of DR2.";
        READ_DR3 = 0x23, "Read of DR3.";
        READ_DR4 = 0x24, "Read of DR4.";
        READ_DR5 = 0x25, "Read of DR5.";
        READ_DR6 = 0x26, "Read of DR6.";
        READ_DR7 = 0x27, "Read of DR7.";
        WRITE_DR0 = 0x30, "Write of DR0.";
        WRITE_DR1 = 0x31, "Write of DR1.";
        WRITE_DR2 = 0x32, "Write of DR2.";
        WRITE_DR3 = 0x33, "Write of DR3.";
        WRITE_DR4 = 0x34, "Write of DR4.";
        WRITE_DR5 = 0x35, "Write of DR5.";
        WRITE_DR6 = 0x36, "Write of DR6.";
        WRITE_DR7 = 0x37, "Write of DR7.";
        EXCP_DE = 0x40, "Exception, vector 0.";
        EXCP_DB = 0x41, "Exception, vector 1.";
        NMI_EXCEPTION = 0x42, "Exception, vector 2.";
        EXCP_BP = 0x43, "Exception, vector 3.";
        EXCP_OF = 0x44, "Exception, vector 4.";
        EXCP_BR = 0x45, "Exception, vector 5.";
        EXCP_UD = 0x46, "Exception, vector 6.";
        EXCP_NM = 0x47, "Exception, vector 7.";
        EXCP_DF = 0x48, "Exception, vector 8.";
        EXCP_TS = 0x4a, "Exception, vector 10.";
        EXCP_NP = 0x4b, "Exception, vector 11.";
        EXCP_SS = 0x4c, "Exception, vector 12.";
        EXCP_GP = 0x4d, "Exception, vector 13.";
        EXCP_PF = 0x4e, "Exception, vector 14.";
        EXCP_MF = 0x50, "Exception, vector 16.";
        EXCP_AC = 0x51, "Exception, vector 17.";
        EXCP_MC = 0x52, "Exception, vector 18.";
        EXCP_XF = 0x53, "Exception, vector 19.";
        EXCP_CP = 0x55, "Exception, vector 21.";
        EXCP_HV = 0x5c, "Exception, vector 28.";
        EXCP_VC = 0x5d, "Exception, vector 29.";
        EXCP_SX = 0x5e, "Exception, vector 30.";
        INTR = 0x60, "Physical interrupt.";
        NMI = 0x61, "NMI.";
        SMI = 0x62, "SMI.";
        INIT = 0x63, "INIT.";
        VINTR = 0x64, "Virtual interrupt.";
        CR0_SEL_WRITE = 0x65, "Write of CR0 that changes more than TS or MP.";
        IDTR_READ = 0x66, "SIDT.";
        GDTR_READ = 0x67, "SGDT.";
        LDTR_READ = 0x68, "SLDT.";
        TR_READ = 0x69, "STR.";
        IDTR_WRITE = 0x6a, "LIDT.";
        GDTR_WRITE = 0x6b, "LGDT.";
        LDTR_WRITE = 0x6c, "LLDT.";
        TR_WRITE = 0x6d, "LTR.";
        RDTSC = 0x6e, "RDTSC.";
        RDPMC = 0x6f, "RDPMC.";
        PUSHF = 0x70, "PUSHF.";
        POPF = 0x71, "POPF.";
        CPUID = 0x72, "CPUID.";
        RSM = 0x73, "RSM.";
        IRET = 0x74, "IRET.";
        SWINT = 0x75, "INT n.";
        INVD = 0x76, "INVD.";
        PAUSE = 0x77, "PAUSE.";
        HLT = 0x78, "HLT.";
        INVLPG = 0x79, "INVLPG.";
        INVLPGA = 0x7a, "INVLPGA.";
        IOIO = 0x7b, "Port I/O.";
        MSR = 0x7c, "RDMSR or WRMSR.";
        TASK_SWITCH = 0x7d, "Task switch.";
        FERR_FREEZE = 0x7e, "FERR freeze.";
        SHUTDOWN = 0x7f, "Shutdown.";
        VMRUN = 0x80, "VMRUN.";
        VMMCALL = 0x81, "VMMCALL.";
        VMLOAD = 0x82, "VMLOAD.";
        VMSAVE = 0x83, "VMSAVE.";
        STGI = 0x84, "STGI.";
        CLGI = 0x85, "CLGI.";
        SKINIT = 0x86, "SKINIT.";
        RDTSCP = 0x87, "RDTSCP.";
        ICEBP = 0x88, "INT1.";
        WBINVD = 0x89, "WBINVD or WBNOINVD.";
        MONITOR = 0x8a, "MONITOR or MONITORX.";
        MWAIT = 0x8b, "MWAIT or MWAITX.";
        MWAIT_COND = 0x8c, "MWAIT with the monitor armed.";
        XSETBV = 0x8d, "XSETBV.";
        RDPRU = 0x8e, "RDPRU.";
        EFER_WRITE_TRAP = 0x8f, "After a write of EFER.";
        CR0_WRITE_TRAP = 0x90, "After a write of CR0.";
        CR1_WRITE_TRAP = 0x91, "After a write of CR1.";
        CR2_WRITE_TRAP = 0x92, "After a write of CR2.";
        CR3_WRITE_TRAP = 0x93, "After a write of CR3.";
        CR4_WRITE_TRAP = 0x94, "After a write of CR4.";
        CR5_WRITE_TRAP = 0x95, "After a write of CR5.";
        CR6_WRITE_TRAP = 0x96, "After a write of CR6.";
        CR7_WRITE_TRAP = 0x97, "After a write of CR7.";
        CR8_WRITE_TRAP = 0x98, "After a write of CR8.";
        CR9_WRITE_TRAP = 0x99, "After a write of CR9.";
        CR10_WRITE_TRAP = 0x9a, "After a write of CR10.";
        CR11_WRITE_TRAP = 0x9b, "After a write of CR11.";
        CR12_WRITE_TRAP = 0x9c, "After a write of CR12.";
        CR13_WRITE_TRAP = 0x9d, "After a write of CR13.";
        CR14_WRITE_TRAP = 0x9e, "After a write of CR14.";
        CR15_WRITE_TRAP = 0x9f, "After a write of CR15.";
        INVLPGB = 0xa0, "INVLPGB.";
        INVLPGB_ILLEGAL = 0xa1, "Illegal INVLPGB.";
        INVPCID = 0xa2, "INVPCID.";
        MCOMMIT = 0xa3, "MCOMMIT.";
        TLBSYNC = 0xa4, "TLBSYNC.";
        BUSLOCK = 0xa5, "Bus lock.";
        IDLE_HLT = 0xa6, "HLT without a pending virtual interrupt.";
        NPF = 0x400, "Nested page fault.";
        AVIC_INCOMPLETE_IPI = 0x401, "AVIC could not deliver an IPI.";
        AVIC_NOACCEL = 0x402, "AVIC access that is not accelerated.";
        VMGEXIT = 0x403, "VMGEXIT.";
        PAGE_NOT_VALIDATED = 0x404, "#VC only: an access to a page that is not validated.";
        MMIO_READ = 0x80000001, "Guest event: MMIO read.";
        MMIO_WRITE = 0x80000002, "Guest event: MMIO write.";
        NMI_COMPLETE = 0x80000003, "Guest event: NMI handled.";
        AP_RESET_HOLD = 0x80000004, "Guest event: wait for INIT and SIPI.";
        AP_JUMP_TABLE = 0x80000005, "Guest event: AP jump table address.";
        PSC = 0x80000010, "Guest event: page state change.";
        GUEST_REQUEST = 0x80000011, "Guest event: message for the firmware.";
        EXT_GUEST_REQUEST = 0x80000012, "Guest event: message for the firmware, with certificates.";
        AP_CREATION = 0x80000013, "Guest event: AP creation.";
        HV_DOORBELL_PAGE = 0x80000014, "Guest event: #HV doorbell page.";
        HV_IPI = 0x80000015, "Guest event: #HV IPI.";
        HV_TIMER = 0x80000016, "Guest event: #HV timer.";
        APIC_ID_LIST = 0x80000017, "Guest event: list of APIC identifiers.";
        RUN_VMPL = 0x80000018, "Guest event: run another VMPL.";
        HV_FEATURES = 0x8000fffd, "Guest event: hypervisor features.";
        TERMINATE = 0x8000fffe, "Guest event: terminate.";
        UNSUPPORTED_EVENT = 0x8000ffff, "Guest event: an unsupported #VC.";
        SOFTWARE = 0xf0000000, "Reserved for software.";
        BUSY = 0xfffffffffffffffe, "The VMSA is in use.";
        INVALID = 0xffffffffffffffff, "Invalid guest state.";
    }
}

impl ExitCode {
    /// The exit code of an exception intercept.
    #[must_use]
    pub const fn exception(vector: u8) -> Self {
        Self(0x40 + vector as u64)
    }

    /// Whether this is an event only a guest's GHCB can hold.
    #[must_use]
    pub const fn is_guest_event(self) -> bool {
        self.0 >= 0x8000_0000 && self.0 <= 0x8000_ffff
    }

    /// Whether an SEV-ES guest's exit is automatic: straight to the hypervisor, without #VC (APM vol. 2, table 15-33).
    #[must_use]
    pub const fn is_automatic(self) -> bool {
        matches!(
            self,
            Self::EXCP_MC
                | Self::INTR
                | Self::NMI
                | Self::SMI
                | Self::INIT
                | Self::VINTR
                | Self::PAUSE
                | Self::HLT
                | Self::SHUTDOWN
                | Self::VMGEXIT
                | Self::AVIC_INCOMPLETE_IPI
                | Self::AVIC_NOACCEL
                | Self::BUSLOCK
                | Self::IDLE_HLT
                | Self::BUSY
                | Self::INVALID
        ) || (self.0 >= Self::EFER_WRITE_TRAP.0 && self.0 <= Self::CR15_WRITE_TRAP.0)
    }
}
